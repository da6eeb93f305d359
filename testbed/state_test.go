package testbed

import (
	"errors"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestParseHierarchies(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
39 31 0:36 / /sys/fs/cgroup/net_cls rw - cgroup cgroup rw,net_cls,clone_children,release_agent=/x
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
42 31 0:39 / /mnt/cgroup rw - cgroup2 cgroup2 rw
`
	want := []hierarchy{
		{Mount: "/sys/fs/cgroup/cpu,cpuacct", Options: "cpu,cpuacct"},
		{Mount: "/sys/fs/cgroup/net_cls", Options: "net_cls"},
		{Mount: "/sys/fs/cgroup/systemd", Options: "none,name=systemd"},
		{Mount: "/sys/fs/cgroup/unified", V2: true},
	}
	if got := parseHierarchies(hybrid); !reflect.DeepEqual(got, want) {
		t.Errorf("hybrid: %+v", got)
	}
	const pure = "30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
	if got := parseHierarchies(pure); !reflect.DeepEqual(got, []hierarchy{{Mount: "/sys/fs/cgroup", V2: true}}) {
		t.Errorf("pure v2: %+v", got)
	}
}

func TestStateRoundTrip(t *testing.T) {
	c := &Cluster{cfg: Config{Dir: t.TempDir()}}
	if _, err := c.load(); !errors.Is(err, ErrNoCluster) {
		t.Errorf("no state: %v", err)
	}
	s := &state{
		Version: stateVersion, ID: "x", BootID: "y", Subnet: netip.MustParsePrefix("10.77.0.0/24"),
		Sysctls: map[string]string{"vm.panic_on_oom": "0"},
		Nodes:   []*nodeState{{Name: "n1", Addr: netip.MustParseAddr("10.77.0.11"), Init: process{PID: 7, Start: 8}}},
	}
	s.addCut("n2", "n1", false)
	s.addCut("n1", "n2", false)
	s.addCut("n2", "n1", true)
	if err := c.save(s); err != nil {
		t.Fatal(err)
	}
	got, err := c.load()
	if err != nil || !reflect.DeepEqual(got, s) || len(got.Cuts) != 2 {
		t.Errorf("loaded %+v, %v", got, err)
	}
	for name, content := range map[string]string{"version": `{"version":99}`, "JSON": "{", "fields": `{"version":2}`} {
		if err := os.WriteFile(c.path("state.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.load(); err == nil || !strings.Contains(err.Error(), "state.json") {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}

// A pid that another process has by now is not the process that was meant.
func TestProcessIdentity(t *testing.T) {
	p, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !p.alive() {
		t.Error("this process is not alive")
	}
	p.Start++
	if p.alive() {
		t.Error("a process with another start time is alive")
	}
	if err := p.killAndWait(t.Context(), nil); err != nil {
		t.Errorf("kill of a process that is gone: %v", err)
	}
}
