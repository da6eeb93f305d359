package dns

import (
	"fmt"
	stdnet "net"
	"os"
	"path/filepath"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// freePort is a UDP port of the loopback interface that nobody has.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := stdnet.ListenUDP("udp", &stdnet.UDPAddr{IP: stdnet.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.LocalAddr().(*stdnet.UDPAddr).Port
}

func corefileAnswering(port int, ip string) string {
	return fmt.Sprintf(".:%d {\n bind 127.0.0.1\n hosts {\n %s web.test\n }\n}\n", port, ip)
}

func ask(t *testing.T, port int) string {
	t.Helper()
	q := new(mdns.Msg).SetQuestion("web.test.", mdns.TypeA)
	client := &mdns.Client{Timeout: 5 * time.Second}
	answer, _, err := client.Exchange(q, fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.Answer) != 1 {
		t.Fatalf("answer %v", answer)
	}
	return answer.Answer[0].(*mdns.A).A.String()
}

func TestInstanceKeepsWhatWorks(t *testing.T) {
	port, dir := freePort(t), t.TempDir()
	restored := 0
	i := newInstance(dir, func() { restored++ })
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
	port, dir := freePort(t), t.TempDir()
	first := newInstance(dir, nil)
	if err := first.load(corefileAnswering(port, "192.0.2.3")); err != nil {
		t.Fatal(err)
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second := newInstance(dir, nil)
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
	if err := newInstance(dir, nil).loadLastGood(); err == nil {
		t.Error("nothing was kept, and it loaded")
	}
}
