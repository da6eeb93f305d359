package net

import (
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/google/nftables"
)

func TestWhoDrops(t *testing.T) {
	drop, accept := nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	chain := func(family nftables.TableFamily, table, name string, hook *nftables.ChainHook, policy *nftables.ChainPolicy) *nftables.Chain {
		return &nftables.Chain{Table: &nftables.Table{Family: family, Name: table}, Name: name, Hooknum: hook, Policy: policy}
	}
	got := firewallOf(cidr("10.42.0.0/16")).whoDrops([]*nftables.Chain{
		chain(nftables.TableFamilyIPv4, "filter", "FORWARD", nftables.ChainHookForward, &drop),
		chain(nftables.TableFamilyIPv6, "filter", "FORWARD", nftables.ChainHookForward, &drop), // no pods there
		chain(nftables.TableFamilyIPv4, "filter", "INPUT", nftables.ChainHookInput, &drop),
		chain(nftables.TableFamilyINet, "firewalld", "filter_FORWARD", nftables.ChainHookForward, &drop),
		chain(nftables.TableFamilyIPv4, "kube-proxy", "filter-forward", nftables.ChainHookForward, &accept),
		chain(nftables.TableFamilyIPv4, "filter", "DOCKER", nil, nil),
	}, "nat\nfilter\n")
	want := dropping{programs: []string{"iptables-nft", "iptables-legacy"}, foreign: []string{"firewalld filter_FORWARD"}}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("whoDrops = %+v, want %+v", got, want)
	}
	if got := firewallOf(cidr("10.42.0.0/16")).whoDrops(nil, ""); len(got.programs)+len(got.foreign) != 0 {
		t.Errorf("an open host: %+v", got)
	}
}

func TestForwardingInKernel(t *testing.T) {
	inNamespace(t)
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		t.Skip(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput() //nolint:gosec // a test
		if err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
		return string(out)
	}
	cluster := cidr("10.42.0.0/16")
	if blocked, err := allowForwarding(t.Context(), cluster); err != nil || len(blocked) > 0 {
		t.Fatalf("an open host: %v, %v", blocked, err)
	}
	if got := run("nft", "list", "ruleset"); strings.TrimSpace(got) != "" {
		t.Errorf("rules on an open host:\n%s", got)
	}
	run("iptables-nft", "-P", "FORWARD", "DROP")
	for range 2 {
		if blocked, err := allowForwarding(t.Context(), cluster); err != nil || len(blocked) > 0 {
			t.Fatalf("blocked %v, err %v", blocked, err)
		}
	}
	if got := run("iptables-nft", "-S", "FORWARD"); strings.Count(got, "10.42.0.0/16") != 2 || strings.Count(got, "ACCEPT") != 2 {
		t.Errorf("rules:\n%s", got)
	}
	run("nft", "add table inet guard; add chain inet guard forwarded { type filter hook forward priority 0; policy drop; }")
	if blocked, err := allowForwarding(t.Context(), cluster); err != nil || len(blocked) != 1 || blocked[0] != "guard forwarded" {
		t.Errorf("blocked %v, err %v, want the chain that cannot be overruled", blocked, err)
	}
	if err := forbidForwarding(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	if got := run("iptables-nft", "-S", "FORWARD"); strings.Contains(got, "10.42") {
		t.Errorf("rules left behind:\n%s", got)
	}
}
