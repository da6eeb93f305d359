package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// addKilled runs an ADD and kills it after a while. It tells whether the kill
// came before the end.
func (l *lab) addKilled(id, config string, after time.Duration) bool {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", l.node, self)
	cmd.Stdin = strings.NewReader(config)
	cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_PATH=/nowhere",
		"CNI_CONTAINERID="+id, "CNI_NETNS=/run/netns/"+id, "CNI_IFNAME=eth0")
	if err := cmd.Start(); err != nil { // ip netns exec becomes the plugin: one process
		l.t.Fatal(err)
	}
	kill := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	err = cmd.Wait()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err != nil && (!ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
		l.t.Fatalf("ADD %s: %v", id, err)
	}
	return err != nil
}

// TestKilled kills the plugin at many points of an ADD. Half of the sandboxes
// are disconnected after, as the runtime does when the plugin fails; of the other
// half, as when runtime and plugin die together, nobody knows anything.
func TestKilled(t *testing.T) {
	l := newLab(t)
	warm := l.node + "-warm"
	begin := time.Now()
	l.add(warm, l.config)
	whole := time.Since(begin)
	config := l.withPorts(
		PortMapping{HostPort: 8000, ContainerPort: 80, Protocol: "TCP"},
		PortMapping{HostPort: 8001, ContainerPort: 80, Protocol: "UDP"})
	const tries = 40
	killed, partly := 0, 0
	for i := range tries {
		id := fmt.Sprintf("%s-k%d", l.node, i)
		l.addNS(id)
		if l.addKilled(id, config, whole*time.Duration(i+1)/tries) {
			killed++
		}
		if len(l.held()) > 2 {
			partly++
		}
		if i%2 == 0 {
			if _, err := l.call("DEL", id, config); err != nil {
				t.Error(err)
			}
			if n := len(l.held()); i == 0 && n != 2 {
				t.Errorf("%d addresses held after DEL, want 2", n)
			}
		}
	}
	t.Logf("%d of %d were killed before the end, %d times addresses were held then", killed, tries, partly)
	if killed == 0 || partly == 0 {
		t.Error("the plugin was never killed midway")
	}
	// One that died between making an address's file and writing its name there.
	if err := os.WriteFile(filepath.Join(l.dataDir(), "moot", "10.42.7.200"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	late := l.node + "-late"
	l.add(late, config) // frees that one
	valid := l.with("cni.dev/valid-attachments", []map[string]string{
		{"containerID": warm, "ifname": "eth0"}, {"containerID": late, "ifname": "eth0"},
	})
	for range 2 {
		if _, err := l.call("GC", "", valid); err != nil {
			t.Fatal(err)
		}
	}
	if held := l.held(); len(held) != 4 {
		t.Errorf("held after collection: %q, want two addresses of %s and of %s", held, warm, late)
	}
	if links := l.sh("ip -n %s -o link show type veth", l.node); strings.Count(links, "\n") != 3 {
		t.Errorf("interfaces after collection, want the wire, %s and %s:\n%s", hostName(warm, "eth0"), hostName(late, "eth0"), links)
	}
	for _, id := range []string{warm, late} {
		if _, err := l.call("DEL", id, config); err != nil {
			t.Error(err)
		}
	}
	l.wantClean()
}

// TestCheckFinds damages a sandbox in every way that CHECK looks for.
func TestCheckFinds(t *testing.T) {
	l := newLab(t)
	pod := l.node + "-pod"
	defer func() { l.t = t }()
	config := l.withPorts(PortMapping{HostPort: 8000, ContainerPort: 80, Protocol: "TCP"})
	for what, damage := range map[string]string{
		"pod address":  "ip -n POD addr del 10.42.7.2/32 dev eth0",
		"pod route":    "ip -n POD -6 route del default",
		"host route":   "ip -n NODE route del 10.42.7.2",
		"interface":    "ip -n NODE link del VETH",
		"host ports":   "ip netns exec NODE nft flush chain ip moot_cni hostports",
		"masquerading": "ip netns exec NODE nft flush chain ip6 moot_cni leaving",
	} {
		t.Run(what, func(t *testing.T) {
			l.t = t
			l.addNS(pod)
			out, err := l.call("ADD", pod, config)
			if err != nil {
				t.Fatal(err)
			}
			checked := with(t, config, "prevResult", json.RawMessage(out))
			if _, err := l.call("CHECK", pod, checked); err != nil {
				t.Errorf("before: %v", err)
			}
			l.sh("%s", strings.NewReplacer("POD", pod, "NODE", l.node, "VETH", hostName(pod, "eth0")).Replace(damage))
			if _, err := l.call("CHECK", pod, checked); err == nil {
				t.Error("not noticed")
			}
			if _, err := l.call("DEL", pod, config); err != nil {
				t.Error(err)
			}
			l.sh("ip netns del %s", pod)
			l.sh("rm -f %s/moot/last_reserved_ip.*", l.dataDir()) // the same address again
		})
	}
}
