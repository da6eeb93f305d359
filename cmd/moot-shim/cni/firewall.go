package cni

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/utils"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/node/net/host"
)

// family is the part of the rules that differs between IPv4 and IPv6.
type family struct {
	table     *nftables.Table
	protocol  uint32 // NFPROTO_*
	size      uint32 // bytes in an address
	srcOffset uint32 // of the source in the network header
	dstOffset uint32
	loopback  *net.IPNet
	hairpin   *nftables.Chain
	inbound   *nftables.Chain // host ports, packets from outside
	local     *nftables.Chain // host ports, packets from this node
	guard     *nftables.Chain // keeps pods from the node's loopback addresses
}

// firewall edits the plugin's chains over netlink. Nobody else writes to them,
// so that a change is one transaction that needs no lock.
type firewall struct {
	conn     *nftables.Conn
	families []*family
}

func newFirewall() (*firewall, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	v4 := &family{
		table:    &nftables.Table{Name: host.Table, Family: nftables.TableFamilyIPv4},
		protocol: syscall.AF_INET, size: net.IPv4len, srcOffset: 12, dstOffset: 16,
		loopback: &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
	}
	v6 := &family{
		table:    &nftables.Table{Name: host.Table, Family: nftables.TableFamilyIPv6},
		protocol: syscall.AF_INET6, size: net.IPv6len, srcOffset: 8, dstOffset: 24,
		loopback: &net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
	}
	for _, f := range []*family{v4, v6} {
		f.hairpin = f.chain("hairpin", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
		f.inbound = f.chain("hostports", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
		f.local = f.chain("hostports_local", nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
		f.guard = f.chain("guard", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
		f.guard.Type = nftables.ChainTypeFilter
	}
	return &firewall{conn: conn, families: []*family{v4, v6}}, nil
}

func (f *family) chain(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	return &nftables.Chain{
		Name: name, Table: f.table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority,
	}
}

// of picks the family of an address.
func (fw *firewall) of(addr net.IP) *family {
	if addr.To4() != nil {
		return fw.families[0]
	}
	return fw.families[1]
}

// rules lists a chain; a table that is not there has none.
func (fw *firewall) rules(c *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := fw.conn.GetRules(c.Table, c)
	if errors.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables chain %s: %w", c.Name, err)
	}
	return rules, nil
}

func comment(r *nftables.Rule) string {
	s, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return s
}

func (fw *firewall) append(c *nftables.Chain, note string, parts ...[]expr.Any) {
	fw.conn.AddRule(&nftables.Rule{
		Table: c.Table, Chain: c, Exprs: slices.Concat(parts...),
		UserData: userdata.AppendString(nil, userdata.TypeComment, note),
	})
}

// forward maps host ports to the pod's addresses. The rules carry the
// container's id, by which unforward finds them.
func (fw *firewall) forward(containerID string, ips []*current.IPConfig, ports []PortMapping) error {
	if len(ports) == 0 {
		return nil
	}
	for _, c := range ips {
		f := fw.of(c.Address.IP)
		fw.conn.AddTable(f.table)
		for _, chain := range []*nftables.Chain{f.inbound, f.local, f.hairpin} {
			fw.conn.AddChain(chain)
		}
		for _, p := range ports {
			if !fw.maps(f, p) {
				continue
			}
			match, target := f.hostPort(p, c.Gateway), f.dnat(c.Address.IP, p.ContainerPort)
			fw.append(f.inbound, containerID, match, target)
			if f.loopbackForwards() {
				fw.append(f.local, containerID, match, target)
			} else {
				fw.append(f.local, containerID, f.within(f.dstOffset, f.loopback, expr.CmpOpNeq), match, target)
			}
		}
		if err := fw.openLoopback(f, containerID, c.Address.IP); err != nil {
			return err
		}
		// A pod that reaches itself by its host port would answer itself.
		self := hostNet(c.Address.IP)
		fw.append(f.hairpin, containerID,
			f.within(f.srcOffset, self, expr.CmpOpEq), f.within(f.dstOffset, self, expr.CmpOpEq),
			[]expr.Any{&expr.Masq{}})
	}
	if err := fw.conn.Flush(); err != nil {
		return fmt.Errorf("set host ports: %w", err)
	}
	forgetFlows(ports)
	return nil
}

// maps tells whether a mapping is of the family.
func (fw *firewall) maps(f *family, p PortMapping) bool {
	return p.HostPort != 0 && (p.HostIP == "" || fw.of(net.ParseIP(p.HostIP)) == f)
}

// loopbackForwards tells whether the kernel can route what the node says to a
// loopback address of its own to a pod. For IPv6 it cannot.
func (f *family) loopbackForwards() bool { return f.size == net.IPv4len }

// openLoopback lets a pod answer what was sent to 127.0.0.1, and nobody else
// use the way this opens: packets for loopback addresses that come from
// outside are dropped before those of host ports become such.
func (fw *firewall) openLoopback(f *family, containerID string, pod net.IP) error {
	if !f.loopbackForwards() {
		return nil
	}
	fw.append(f.hairpin, containerID,
		f.within(f.srcOffset, f.loopback, expr.CmpOpEq), f.within(f.dstOffset, hostNet(pod), expr.CmpOpEq),
		[]expr.Any{&expr.Masq{}})
	have, err := fw.rules(f.guard)
	if err != nil || len(have) > 0 {
		return err
	}
	fw.conn.AddChain(f.guard)
	fw.append(f.guard, "loopback addresses are the node's own",
		[]expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: registerA},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: registerA, Data: []byte("lo\x00")},
		},
		f.within(f.dstOffset, f.loopback, expr.CmpOpEq),
		[]expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	return nil
}

// forgetFlows ends what the kernel remembers of UDP flows to the ports, or
// senders that never pause would go on to where the port led before. Without
// the kernel's help, which is a module of its own, they do so until they pause.
func forgetFlows(ports []PortMapping) {
	for _, p := range ports {
		if number, _ := protocolNumber(p.Protocol); number != unix.IPPROTO_UDP {
			continue
		}
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			_ = utils.DeleteConntrackEntriesForDstPort(uint16(p.HostPort), unix.IPPROTO_UDP, family)
		}
	}
}

// unforward removes the host ports of the containers that match.
func (fw *firewall) unforward(match func(containerID string) bool) error {
	removed := false
	for _, f := range fw.families {
		for _, c := range []*nftables.Chain{f.inbound, f.local, f.hairpin} {
			rules, err := fw.rules(c)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if !match(comment(r)) {
					continue
				}
				if err := fw.conn.DelRule(r); err != nil {
					return fmt.Errorf("remove host port: %w", err)
				}
				removed = true
			}
		}
	}
	if !removed {
		return nil
	}
	if err := fw.conn.Flush(); err != nil {
		return fmt.Errorf("remove host ports: %w", err)
	}
	return nil
}
