package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Table is the name of the pods' table, once for IPv4 and once for IPv6. The
// chain leaving in it is this package's, the others are the plugin's.
const Table = "moot_cni"

const (
	masqueradeChain = "leaving" // masquerade is a word of the language
	register        = 1         // what the rules compare in
	maxNote         = 128       // the longest comment that nft prints
)

// family is the part of the rules that differs between IPv4 and IPv6.
type family struct {
	table     nftables.TableFamily
	src, dst  uint32 // where the addresses are in the network header
	multicast netip.Prefix
}

func familyOf(p netip.Prefix) family {
	if p.Addr().Is6() {
		return family{nftables.TableFamilyIPv6, 8, 24, netip.MustParsePrefix("ff00::/8")}
	}
	return family{nftables.TableFamilyIPv4, 12, 16, netip.MustParsePrefix("224.0.0.0/4")}
}

// Masquerade gives packets from each of subnets, the node's own pod networks at
// most one a family, the node's address when they leave for anywhere but
// clusters and multicast groups. Addresses of this node itself are not left
// for; those of other nodes are, for only pods are known there by their
// addresses for certain.
func Masquerade(subnets, clusters []netip.Prefix) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, subnet := range subnets {
		f := familyOf(subnet)
		kept := []netip.Prefix{}
		for _, c := range clusters {
			if c.Addr().Is6() == subnet.Addr().Is6() {
				kept = append(kept, c)
			}
		}
		table := &nftables.Table{Name: Table, Family: f.table}
		chain := &nftables.Chain{
			Name: masqueradeChain, Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		}
		have, err := conn.GetRules(table, chain)
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("list nftables chain %s: %w", chain.Name, err)
		}
		note := noteOf(subnet, kept)
		if len(have) == 1 && comment(have[0]) == note {
			continue
		}
		conn.AddTable(table)
		conn.AddChain(chain)
		conn.FlushChain(chain)
		match := within(f.src, subnet, expr.CmpOpEq)
		for _, p := range append(kept, f.multicast) {
			match = append(match, within(f.dst, p, expr.CmpOpNeq)...)
		}
		conn.AddRule(&nftables.Rule{
			Table: table, Chain: chain, Exprs: append(match, &expr.Masq{}),
			UserData: userdata.AppendString(nil, userdata.TypeComment, note),
		})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set masquerading: %w", err)
	}
	return nil
}

// Clear removes the pods' tables, with what the plugin has in them: no pod of
// this network may be left.
func Clear() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		// Added first: to delete what is not there would fail.
		conn.DelTable(conn.AddTable(&nftables.Table{Name: Table, Family: f}))
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove nftables tables %s: %w", Table, err)
	}
	return nil
}

// within matches the address at the offset against a network.
func within(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	size := p.Addr().BitLen() / 8
	return []expr.Any{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(size)}, //nolint:gosec // 4 or 16
		&expr.Bitwise{
			SourceRegister: register, DestRegister: register, Len: uint32(size), //nolint:gosec // 4 or 16
			Mask: net.CIDRMask(p.Bits(), size*8), Xor: make([]byte, size),
		},
		&expr.Cmp{Op: op, Register: register, Data: p.Masked().Addr().AsSlice()},
	}
}

func noteOf(subnet netip.Prefix, kept []netip.Prefix) string {
	parts := []string{subnet.String(), "leaving"}
	for _, p := range kept {
		parts = append(parts, p.String())
	}
	note := strings.Join(parts, " ")
	return note[:min(len(note), maxNote)]
}

func comment(r *nftables.Rule) string {
	s, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return s
}

// Masquerades tells whether the rules of subnets are there.
func Masquerades(subnets []netip.Prefix) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	for _, subnet := range subnets {
		table := &nftables.Table{Name: Table, Family: familyOf(subnet).table}
		rules, err := conn.GetRules(table, &nftables.Chain{Name: masqueradeChain, Table: table})
		if errors.Is(err, syscall.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list nftables chain %s: %w", masqueradeChain, err)
		}
		if !slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
			return strings.HasPrefix(comment(r), subnet.String()+" ")
		}) {
			return false, nil
		}
	}
	return true, nil
}
