package net

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/google/nftables"
)

// Docker and some firewalls drop what the host forwards unless a rule allows it.
// Pod traffic is forwarded, all of it, so rules that allow it are put before
// theirs, where that can be done: in the chain FORWARD of iptables. A chain of
// nftables that drops cannot be overruled from outside; its owner must let pods
// pass, and is named in the log.

// forwardRules are the rules that let pod traffic pass.
func forwardRules(cluster netip.Prefix) [][]string {
	var rules [][]string
	for _, direction := range []string{"-s", "-d"} {
		rules = append(rules, []string{
			"FORWARD", direction, cluster.String(), "-m", "comment", "--comment", "moot pods", "-j", "ACCEPT",
		})
	}
	return rules
}

// dropping is who drops forwarded packets by default.
type dropping struct {
	programs []string // iptables programs whose FORWARD chain does, or may
	foreign  []string // chains of nftables that do
}

// firewallFamily is what differs between IPv4 and IPv6.
type firewallFamily struct {
	family   nftables.TableFamily
	program  string // iptables of the family
	legacies string // lists the tables of the older kind of iptables
}

func firewallOf(cluster netip.Prefix) firewallFamily {
	if cluster.Addr().Is6() {
		return firewallFamily{nftables.TableFamilyIPv6, "ip6tables", "/proc/net/ip6_tables_names"}
	}
	return firewallFamily{nftables.TableFamilyIPv4, "iptables", "/proc/net/ip_tables_names"}
}

// whoDrops looks at base chains in the way of forwarded packets. legacyTables is
// the list of tables that the older kind of iptables has, whose policy only its
// own program can tell.
func (f firewallFamily) whoDrops(chains []*nftables.Chain, legacyTables string) dropping {
	var d dropping
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		switch {
		case c.Table.Family == f.family && c.Table.Name == "filter" && c.Name == "FORWARD":
			d.programs = append(d.programs, f.program+"-nft")
		case c.Table.Family == f.family || c.Table.Family == nftables.TableFamilyINet:
			d.foreign = append(d.foreign, c.Table.Name+" "+c.Name)
		}
	}
	for name := range strings.FieldsSeq(legacyTables) {
		if name == "filter" {
			d.programs = append(d.programs, f.program+"-legacy")
		}
	}
	return d
}

func (f firewallFamily) look() (dropping, error) {
	conn, err := nftables.New()
	if err != nil {
		return dropping{}, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return dropping{}, fmt.Errorf("list nftables chains: %w", err)
	}
	legacy, err := os.ReadFile(f.legacies)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return dropping{}, fmt.Errorf("list iptables tables: %w", err)
	}
	return f.whoDrops(chains, string(legacy)), nil
}

// allowForwarding lets pod traffic pass the host's firewall, and returns the
// chains it could not do that for.
func allowForwarding(ctx context.Context, cluster netip.Prefix) (blocked []string, err error) {
	f := firewallOf(cluster)
	d, err := f.look()
	if err != nil {
		return nil, err
	}
	for _, program := range d.programs {
		for _, rule := range forwardRules(cluster) {
			if f.iptables(ctx, program, "-C", rule) == nil {
				continue
			}
			if err := f.iptables(ctx, program, "-I", rule); err != nil {
				return d.foreign, err
			}
		}
	}
	return d.foreign, nil
}

// forbidForwarding takes the rules back.
func forbidForwarding(ctx context.Context, cluster netip.Prefix) error {
	var errs []error
	f := firewallOf(cluster)
	for _, program := range []string{f.program + "-nft", f.program + "-legacy"} {
		if _, err := exec.LookPath(program); err != nil {
			continue
		}
		for _, rule := range forwardRules(cluster) {
			for f.iptables(ctx, program, "-C", rule) == nil {
				if err := f.iptables(ctx, program, "-D", rule); err != nil {
					errs = append(errs, err)
					break
				}
			}
		}
	}
	return errors.Join(errs...)
}

func (f firewallFamily) iptables(ctx context.Context, program, operation string, rule []string) error {
	if _, err := exec.LookPath(program); err != nil {
		program = f.program // where there is one kind, it has no other name
	}
	args := append([]string{"-w", "5", operation}, rule...)
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput() //nolint:gosec // fixed arguments but for a checked network
	if err != nil {
		return fmt.Errorf("run %s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
