package gossip_test

import (
	"bytes"
	"net/netip"
	"os"
	"testing"

	"github.com/mootkube/moot/gossip"
)

type tappedPort struct {
	gossip.Port
	tap *tap
}

func (p *tappedPort) WritePacket(b []byte, to netip.AddrPort) error {
	p.tap.mu.Lock()
	p.tap.sent = append(p.tap.sent, bytes.Clone(b))
	p.tap.mu.Unlock()
	return p.Port.WritePacket(b, to)
}

// openFiles counts this process's open files.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
