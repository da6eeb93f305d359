package cni

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// The binary of the test is the plugin too, and small servers and clients: the
// tests run them in network namespaces with the commands ip and nft.
const envTool = "MOOT_CNI_TEST_TOOL"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envTool) != "":
		os.Exit(tool(os.Getenv(envTool)))
	case os.Getenv("CNI_COMMAND") != "":
		os.Exit(Main(os.Getenv))
	}
	os.Exit(m.Run())
}

// tool serves who asked, or asks and prints the answer.
func tool(what string) int {
	if addr, ok := strings.CutPrefix(what, "serve "); ok {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println("listening")
		fmt.Fprintln(os.Stderr, http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			_, _ = io.WriteString(w, host)
		})))
		return 1
	}
	if addr, ok := strings.CutPrefix(what, "serve-udp "); ok {
		return serveUDP(addr)
	}
	if addr, ok := strings.CutPrefix(what, "ask-udp "); ok {
		return askUDP(addr)
	}
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(strings.TrimPrefix(what, "get "))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(os.Stdout, resp.Body)
	if err != nil {
		return 1
	}
	return 0
}

// serveUDP tells each sender its address.
func serveUDP(addr string) int {
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("listening")
	buf := make([]byte, 64)
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return 1
		}
		host, _, _ := net.SplitHostPort(from.String())
		_, _ = conn.WriteTo([]byte(host), from)
	}
}

func askUDP(addr string) int {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 64)
	n := 0
	if _, err = conn.Write([]byte("?")); err == nil {
		n, err = conn.Read(buf)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = os.Stdout.Write(buf[:n])
	return 0
}

// lab is a node in a namespace, and a machine outside the cluster.
type lab struct {
	t             *testing.T
	node, outside string
	config        string
}

const (
	nodeAddr, outsideAddr = "192.0.2.1", "192.0.2.2"
	nodeAddr6             = "2001:db8::1"
	outsideAddr6          = "2001:db8::2"
)

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	for _, name := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s in PATH", name)
		}
	}
	id := fmt.Sprintf("moot-cni-%d", os.Getpid())
	l := &lab{t: t, node: id + "-node", outside: id + "-out"}
	for _, ns := range []string{l.node, l.outside} {
		l.addNS(ns)
	}
	l.sh("ip -n %s link add wire type veth peer name wire netns %s", l.node, l.outside)
	for ns, addrs := range map[string][]string{l.node: {nodeAddr, nodeAddr6}, l.outside: {outsideAddr, outsideAddr6}} {
		l.sh("ip -n %s addr add %s/24 dev wire", ns, addrs[0])
		l.sh("ip -n %s addr add %s/64 dev wire nodad", ns, addrs[1])
		l.sh("ip -n %s link set wire up", ns)
	}
	config, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "moot", "type": PluginType,
		"subnets": []string{"10.42.7.0/24", "fd42:7::/64"}, "clusterCIDRs": []string{"10.42.0.0/16", "fd42::/16"},
		"masquerade": true, "dataDir": t.TempDir(), "capabilities": map[string]bool{"portMappings": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	l.config = string(config)
	return l
}

func (l *lab) addNS(name string) {
	l.t.Helper()
	l.sh("ip netns add %s", name)
	l.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	l.sh("ip -n %s link set lo up", name)
}

func (l *lab) sh(format string, args ...any) string {
	l.t.Helper()
	line := fmt.Sprintf(format, args...)
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// in prepares this binary to run as a tool in a namespace.
func (l *lab) in(ns, what string) *exec.Cmd {
	cmd := exec.Command("ip", "netns", "exec", ns, "/proc/self/exe")
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Args[4] = self
	cmd.Env = append(os.Environ(), envTool+"="+what)
	return cmd
}

// serve answers on a port of a namespace until the test ends.
func (l *lab) serve(ns, addr string) { l.t.Helper(); l.start(ns, "serve "+addr) }

func (l *lab) start(ns, what string) {
	l.t.Helper()
	cmd := l.in(ns, what)
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, len("listening"))); err != nil {
		l.t.Fatalf("server in %s: %v", ns, err)
	}
}

// get asks from a namespace and returns the address the server saw.
func (l *lab) get(ns, url string) string { l.t.Helper(); return l.do(ns, "get "+url) }

// ask is get by UDP.
func (l *lab) ask(ns, addr string) string { l.t.Helper(); return l.do(ns, "ask-udp "+addr) }

func (l *lab) do(ns, what string) string {
	l.t.Helper()
	out, err := l.in(ns, what).CombinedOutput()
	if err != nil {
		l.t.Errorf("%s from %s: %v\n%s", what, ns, err, out)
	}
	return strings.TrimSpace(string(out))
}

// call runs the plugin in the node's namespace.
func (l *lab) call(command, id, config string) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("ip", "netns", "exec", l.node, self)
	cmd.Stdin = strings.NewReader(config)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_PATH=/nowhere")
	if id != "" {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+id, "CNI_NETNS=/run/netns/"+id, "CNI_IFNAME=eth0")
	}
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w: %s", command, id, err, out)
	}
	return out, nil
}

// with returns the configuration with more keys, as a runtime adds them.
func (l *lab) with(key string, value any) string {
	l.t.Helper()
	return with(l.t, l.config, key, value)
}

func with(t *testing.T, config, key string, value any) string {
	t.Helper()
	var c map[string]any
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	c[key] = value
	out, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func (l *lab) withPorts(ports ...PortMapping) string {
	return l.with("runtimeConfig", map[string]any{"portMappings": ports})
}

// add makes a namespace, connects it and returns its addresses.
func (l *lab) add(id, config string) []string {
	l.t.Helper()
	l.addNS(id)
	out, err := l.call("ADD", id, config)
	if err != nil {
		l.t.Fatal(err)
	}
	var result current.Result
	if err := json.Unmarshal(out, &result); err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
	var addrs []string
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.IP.String())
	}
	if len(addrs) != 2 || len(result.Interfaces) != 2 {
		l.t.Fatalf("result has %d addresses and %d interfaces: %s", len(addrs), len(result.Interfaces), out)
	}
	if _, err := l.call("CHECK", id, with(l.t, config, "prevResult", json.RawMessage(out))); err != nil {
		l.t.Error(err)
	}
	return addrs
}

func (l *lab) want(what, got, want string) {
	l.t.Helper()
	if got != want {
		l.t.Errorf("%s: server saw %q, want %q", what, got, want)
	}
}

func (l *lab) dataDir() string {
	l.t.Helper()
	var c Config
	if err := json.Unmarshal([]byte(l.config), &c); err != nil {
		l.t.Fatal(err)
	}
	return c.DataDir
}

// held lists the reserved addresses.
func (l *lab) held() []string {
	l.t.Helper()
	var out []string
	for _, pattern := range []string{"10.*", "fd42:*"} {
		found, err := filepath.Glob(filepath.Join(l.dataDir(), "moot", pattern))
		if err != nil {
			l.t.Fatal(err)
		}
		out = append(out, found...)
	}
	return out
}

func TestPodTraffic(t *testing.T) {
	l := newLab(t)
	a, b := l.node+"-a", l.node+"-b"
	ports := l.withPorts(
		PortMapping{HostPort: 8000, ContainerPort: 80, Protocol: "tcp"},
		PortMapping{HostPort: 8001, ContainerPort: 80, Protocol: "tcp", HostIP: nodeAddr},
		PortMapping{HostPort: 8002, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"})
	aAddr, bAddr := l.add(a, l.config), l.add(b, ports)
	l.serve(a, ":80")
	l.serve(b, ":80")
	l.serve(l.outside, ":80")

	for i, at := range []func(string) string{
		func(s string) string { return "http://" + s + "/" },
		func(s string) string { return "http://[" + s + "]/" },
	} {
		outside := []string{outsideAddr, outsideAddr6}[i]
		node := []string{nodeAddr, nodeAddr6}[i]
		gateway := []string{"10.42.7.1", "fd42:7::1"}[i]
		l.want("pod to pod", l.get(a, at(bAddr[i])), aAddr[i])
		l.want("node to pod", l.get(l.node, at(bAddr[i])), gateway)
		l.want("pod to outside", l.get(a, at(outside)), node)
		l.want("pod to itself", l.get(b, at(bAddr[i])), bAddr[i])
	}
	for i, node := range []string{nodeAddr, "[" + nodeAddr6 + "]"} {
		url := "http://" + node + ":8000/"
		l.want("host port from outside", l.get(l.outside, url), []string{outsideAddr, outsideAddr6}[i])
		l.want("host port from a pod", l.get(a, url), aAddr[i])
		if got := l.get(b, url); got == "" {
			t.Error("a pod does not reach itself by its host port")
		}
		if got := l.get(l.node, url); got == "" {
			t.Error("the node does not reach its own host port")
		}
	}
	l.want("host port of one address", l.get(l.outside, "http://"+nodeAddr+":8001/"), outsideAddr)
	for _, port := range []string{"8000", "8002"} {
		l.want("host port of 127.0.0.1", l.get(l.node, "http://127.0.0.1:"+port+"/"), "10.42.7.1")
	}
	l.wantLoopbackGuarded(b)

	for _, pod := range []string{a, b, b} { // twice: it must not matter
		if _, err := l.call("DEL", pod, ports); err != nil {
			t.Error(err)
		}
	}
	l.wantClean()
}

// wantLoopbackGuarded tries to reach what the node serves on 127.0.0.1 from a
// pod with a host port, which has changed its own network to get there.
func (l *lab) wantLoopbackGuarded(pod string) {
	l.t.Helper()
	l.serve(l.node, "127.0.0.1:9000")
	l.sh("ip -n %s addr del 127.0.0.1/8 dev lo", pod)
	l.sh("ip netns exec %s sysctl -qw net.ipv4.conf.all.route_localnet=1", pod)
	l.sh("ip -n %s route add 127.0.0.1 via 10.42.7.1 dev eth0", pod)
	if out, err := l.in(pod, "get http://127.0.0.1:9000/").CombinedOutput(); err == nil {
		l.t.Errorf("a pod reaches the node's own 127.0.0.1: %s", out)
	}
}

// wantClean checks that only the standing rules are left.
func (l *lab) wantClean() {
	l.t.Helper()
	if held := l.held(); len(held) != 0 {
		l.t.Errorf("addresses left: %q", held)
	}
	rules := l.sh("ip netns exec %s nft list ruleset", l.node)
	if strings.Contains(rules, "dnat") || strings.Contains(rules, l.node) {
		l.t.Errorf("rules left:\n%s", rules)
	}
	if n := strings.Count(rules, "masquerade comment"); n != 2 {
		l.t.Errorf("%d masquerading rules, want one a family:\n%s", n, rules)
	}
	// The kernel takes a deleted namespace apart in its own time.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(20 * time.Second)
	for {
		links := l.sh("ip -n %s -o link show type veth", l.node)
		if strings.Count(links, "\n") == 1 {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			l.t.Fatalf("interfaces left:\n%s", links)
		}
	}
}

// TestConcurrentAdds adds many at once: all addresses differ, and the standing
// rules are there once.
func TestConcurrentAdds(t *testing.T) {
	l := newLab(t)
	const pods = 12
	var wg sync.WaitGroup
	errs := make([]error, pods)
	for i := range pods {
		id := fmt.Sprintf("%s-%d", l.node, i)
		l.addNS(id)
		wg.Go(func() {
			_, errs[i] = l.call("ADD", id, l.withPorts(PortMapping{HostPort: 9000 + i, ContainerPort: 80, Protocol: "UDP"}))
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if got := len(l.held()); got != 2*pods {
		t.Errorf("%d addresses held, want %d", got, 2*pods)
	}
	if _, err := l.call("ADD", l.node+"-0", l.config); err == nil {
		t.Error("a second add of one container went through")
	}
	// What a runtime no longer knows is collected; what it knows stays.
	keep := l.node + "-3"
	config := l.with("cni.dev/valid-attachments", []map[string]string{{"containerID": keep, "ifname": "eth0"}})
	if _, err := l.call("GC", "", config); err != nil {
		t.Error(err)
	}
	if got := len(l.held()); got != 2 {
		t.Errorf("%d addresses held after collection, want 2", got)
	}
	rules := l.sh("ip netns exec %s nft list ruleset", l.node)
	if !strings.Contains(rules, keep) || strings.Contains(rules, l.node+"-4\"") {
		t.Errorf("wrong rules after collection:\n%s", rules)
	}
	for i := range pods {
		if _, err := l.call("DEL", fmt.Sprintf("%s-%d", l.node, i), l.config); err != nil {
			t.Error(err)
		}
	}
	l.wantClean()
}

// TestNamespaceGone disconnects a pod whose namespace went without notice.
func TestNamespaceGone(t *testing.T) {
	l := newLab(t)
	pod := l.node + "-gone"
	l.add(pod, l.config)
	l.sh("ip netns del %s", pod)
	if _, err := l.call("DEL", pod, l.config); err != nil {
		t.Error(err)
	}
	l.wantClean()
}

func TestParseRefuses(t *testing.T) {
	for name, config := range map[string]string{
		"not JSON":        `{`,
		"no subnet":       `{"name":"n","cniVersion":"1.1.0"}`,
		"host address":    `{"subnets":["10.0.0.1/24"]}`,
		"two of a family": `{"subnets":["10.0.0.0/24","10.0.1.0/24"]}`,
		"bad cluster":     `{"subnets":["10.0.0.0/24"],"clusterCIDRs":["x"]}`,
		"bad port":        `{"subnets":["10.0.0.0/24"],"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":0,"protocol":"tcp"}]}}`,
		"bad protocol":    `{"subnets":["10.0.0.0/24"],"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"icmp"}]}}`,
		"bad host":        `{"subnets":["10.0.0.0/24"],"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"tcp","hostIP":"x"}]}}`,
	} {
		if _, err := parse([]byte(config)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"moot","subnets":["10.42.7.0/24"],"clusterCIDRs":["10.42.0.0/16"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := parse(data)
		if err == nil && (len(n.subnets) == 0 || n.dataDir == "") {
			t.Errorf("accepted %q without what it needs", data)
		}
	})
}
