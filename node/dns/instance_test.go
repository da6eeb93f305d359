package dns

import (
	"fmt"
	stdnet "net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/mootkube/moot/testbed/loopback"
)

// nobody is doubted.
func nobody(netip.Addr) int { return 0 }

func corefileAnswering(port int, ip string) string {
	return fmt.Sprintf(".:%d {\n bind 127.0.0.1\n hosts {\n %s web.test\n }\n}\n", port, ip)
}

func ask(t *testing.T, port int) string {
	t.Helper()
	addr, err := lookUp(port)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func lookUp(port int) (string, error) {
	q := new(mdns.Msg).SetQuestion("web.test.", mdns.TypeA)
	client := &mdns.Client{Timeout: 5 * time.Second}
	answer, _, err := client.Exchange(q, fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return "", err
	}
	if len(answer.Answer) != 1 {
		return "", fmt.Errorf("answer %v", answer)
	}
	return answer.Answer[0].(*mdns.A).A.String(), nil
}

func TestInstanceKeepsWhatWorks(t *testing.T) {
	port, dir := int(loopback.Addr(t).Port()), t.TempDir()
	restored := 0
	i := newInstance(dir, nobody, func() { restored++ })
	t.Cleanup(func() {
		if err := i.stop(); err != nil {
			t.Error(err)
		}
	})
	if err := i.load(corefileAnswering(port, "192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, port); got != "192.0.2.1" {
		t.Fatalf("answer %s", got)
	}
	for _, bad := range []string{".:53 {\n nosuchplugin\n}", ".:53 {\n cache -1 x y\n}", ".:53 {"} {
		if err := i.load(bad); err == nil {
			t.Fatalf("loaded %q", bad)
		}
	}
	if got := ask(t, port); got != "192.0.2.1" {
		t.Fatalf("answer after a bad configuration: %s", got)
	}
	if err := i.load(corefileAnswering(port, "192.0.2.2")); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, port); got != "192.0.2.2" {
		t.Fatalf("answer after the reload: %s", got)
	}
	if restored < 5 {
		t.Errorf("klog restored %d times in 5 loads", restored)
	}
}

func TestInstanceRemembersTheLastGood(t *testing.T) {
	port, dir := int(loopback.Addr(t).Port()), t.TempDir()
	first := newInstance(dir, nobody, nil)
	if err := first.load(corefileAnswering(port, "192.0.2.3")); err != nil {
		t.Fatal(err)
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second := newInstance(dir, nobody, nil)
	if err := second.loadLastGood(); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, port); got != "192.0.2.3" {
		t.Fatalf("answer %s", got)
	}
	if err := second.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "Corefile")); err != nil {
		t.Fatal(err)
	}
	if err := newInstance(dir, nobody, nil).loadLastGood(); err == nil {
		t.Error("nothing was kept, and it loaded")
	}
}

// TestInstanceStopsCleanly stops a CoreDNS that waits for another server's answer:
// who asked gets it.
func TestInstanceStopsCleanly(t *testing.T) {
	upstream, err := stdnet.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	server := &mdns.Server{PacketConn: upstream, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		asked <- struct{}{}
		<-answer
		m := new(mdns.Msg).SetReply(q)
		m.Answer = records(t, "web.test. A 192.0.2.4")
		_ = w.WriteMsg(m)
	})}
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() { _ = server.ActivateAndServe() })
	defer func() { _ = server.Shutdown() }()

	port := int(loopback.Addr(t).Port())
	i := newInstance(t.TempDir(), nobody, nil)
	if err := i.load(fmt.Sprintf(".:%d {\n bind 127.0.0.1\n forward . %s\n}\n", port, upstream.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	var got string
	var asking, stopping error
	var ends sync.WaitGroup
	ends.Go(func() { got, asking = lookUp(port) })
	<-asked
	ends.Go(func() { stopping = i.stop() })
	for { // until no connection is accepted any more
		conn, err := stdnet.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(answer)
	ends.Wait()
	if got != "192.0.2.4" || asking != nil || stopping != nil {
		t.Errorf("answered %q, %v; stopped: %v", got, asking, stopping)
	}
}
