package proxy

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
)

const (
	nodeAddr    = "10.0.0.1"
	serviceAddr = "10.43.0.50"
)

// inNamespace runs the calling test once more, in a process of its own in a
// network namespace of its own, with the node's address and a default route, and
// returns true there. In the first process it returns false. A locked thread
// would not do: the iptables proxier has goroutines of its own.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const inside = "MOOT_TEST_IN_NAMESPACE"
	if os.Getenv(inside) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v") //nolint:gosec // this very binary
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		switch {
		case err != nil:
			t.Fatalf("in the namespace: %v\n%s", err, out)
		case strings.Contains(string(out), "--- SKIP"):
			t.Skipf("%s", out)
		case !strings.Contains(string(out), "--- PASS"):
			t.Fatalf("nothing ran in the namespace:\n%s", out)
		}
		return false
	}
	uplink := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0p"}
	if err := netlink.LinkAdd(uplink); err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(nodeAddr + "/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(uplink, addr); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lo", "eth0", "eth0p"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("10.0.0.254")}); err != nil {
		t.Fatal(err)
	}
	return true
}

// echoServer returns its port on the node's address.
func echoServer(t *testing.T) int32 {
	t.Helper()
	l, err := net.Listen("tcp", nodeAddr+":0") //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return int32(l.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port
}

// start makes a proxier of the mode as Run does and feeds it one Service, whose
// backend is ready or not there at all.
func start(t *testing.T, mode Mode, port int32, backend bool) {
	t.Helper()
	cfg := testConfig()
	cfg.Mode = mode
	p := &Proxy{cfg: cfg}
	plane, serving, err := p.newPlane(t.Context(), events.NewFakeRecorder(100))
	if err != nil || serving.Mode != mode {
		t.Fatalf("proxier of mode %q: %q, %v", mode, serving.Mode, err)
	}
	proxier := plane.Provider
	removeOther(t.Context(), cfg, mode)
	name, protocol, ready := "http", corev1.ProtocolTCP, true
	proxier.OnServiceAdd(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: serviceAddr, ClusterIPs: []string{serviceAddr},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Name: name, Protocol: protocol, Port: 80}},
		},
	})
	if backend {
		proxier.OnEndpointSliceAdd(&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{nodeAddr}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
			}},
		})
	}
	proxier.OnServiceSynced()
	proxier.OnEndpointSlicesSynced()
}

func dial() (net.Conn, error) {
	return net.DialTimeout("tcp", serviceAddr+":80", 5*time.Second) //nolint:noctx // a test
}

func echo(conn net.Conn, text string) error {
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(conn, back); err != nil {
		return err
	}
	if string(back) != text {
		return fmt.Errorf("echo %q came back as %q", text, back)
	}
	return nil
}

func TestServicesByNFTables(t *testing.T) { testServices(t, NFTables, "nft") }
func TestServicesByIPTables(t *testing.T) { testServices(t, IPTables, "iptables") }

func testServices(t *testing.T, mode Mode, program string) {
	if !inNamespace(t) {
		return
	}
	if _, err := exec.LookPath(program); err != nil {
		t.Skip(err)
	}
	port := echoServer(t)
	start(t, mode, port, true)
	open, err := dial()
	if err != nil {
		t.Fatalf("connect to the Service: %v", err)
	}
	defer func() { _ = open.Close() }()
	if err := echo(open, "before"); err != nil {
		t.Fatal(err)
	}

	start(t, mode, port, true) // as after a restart of the daemon
	if err := echo(open, "after"); err != nil {
		t.Fatalf("connection open across a restart: %v", err)
	}
	again, err := dial()
	if err != nil {
		t.Fatalf("connect after a restart: %v", err)
	}
	_ = again.Close()

	start(t, mode, port, false)
	if conn, err := dial(); err == nil {
		_ = conn.Close()
		t.Error("a Service without a backend was connected to")
	} else if !strings.Contains(err.Error(), "refused") {
		t.Errorf("a Service without a backend: %v, want it refused at once", err)
	}

	if err := Cleanup(t.Context(), testConfig().Pins); err != nil {
		t.Fatal(err)
	}
	rules, err := exec.CommandContext(t.Context(), "nft", "list", "ruleset").CombinedOutput()
	if err != nil || strings.Contains(strings.ToLower(string(rules)), "kube-svc") || strings.Contains(string(rules), "shop") {
		t.Errorf("rules left behind (%v):\n%s", err, rules)
	}
}

func TestModesDoNotMix(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	port := echoServer(t)
	start(t, IPTables, port, true)
	start(t, NFTables, port, true)
	rules, err := exec.CommandContext(t.Context(), "nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	if text := string(rules); strings.Contains(text, "KUBE-SVC") || !strings.Contains(text, "table ip kube-proxy") {
		t.Errorf("rules after the change from iptables to nftables:\n%s", text)
	}
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
