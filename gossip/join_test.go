package gossip_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/store"
)

// object returns a ConfigMap of about size bytes. Half of what it holds is
// random text, the rest repeats, as in objects of people's.
func object(rng *rand.Rand, i, size int) []byte {
	random := make([]byte, size*3/8)
	for j := range random {
		random[j] = byte(rng.Uint32()) //nolint:gosec // a test's
	}
	text := base64.StdEncoding.EncodeToString(random)
	uid := rand.New(rand.NewPCG(uint64(i), 3)) //nolint:gosec // a test's
	head := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"object-%d","namespace":"default","uid":"%08x-%04x-4000-8000-%012x","resourceVersion":"1"},"data":{"random":%q,"plain":"`,
		i, uid.Uint32(), uid.Uint32()>>16, uid.Uint64()>>16, text)
	plain := bytes.Repeat([]byte("listen 0.0.0.0:8080; upstream backend; "), size)
	return fmt.Appendf(nil, `%s%s"}}`, head, plain[:max(1, size-len(head)-3)])
}

// TestJoin has an empty node take over a store of MOOT_JOIN objects of 5 KB from
// another over loopback, TLS and the disk under TMPDIR, and then repair 100
// differences, and prints what each took.
func TestJoin(t *testing.T) {
	count := 2000
	if n, err := strconv.Atoi(os.Getenv("MOOT_JOIN")); err == nil && n > 0 {
		count = n
	}
	a := newAuthority(t)
	first, second := newMachine(t, a, 1, "n1"), newMachine(t, a, 2, "n2")
	sent := &meter{}
	first.cfg.Network, second.cfg.Network = sent, sent
	for _, m := range []*machine{first, second} {
		m.storeCfg.FS, m.storeCfg.Dir = vfs.Default, t.TempDir()
	}
	first.start()
	fill(t, first, count)

	written := diskWrites(t)
	second.start(first.addr)
	began, before := time.Now(), processorTime(t)
	if err := second.agent.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	took, spent := time.Since(began), processorTime(t)-before
	if first.store.Digest() != second.store.Digest() {
		t.Errorf("digests differ: %v, %v", first.store.Digest(), second.store.Digest())
	}
	t.Logf("%d objects of 5 KB joined in %.2f s with %.2f s of processor time on both sides, %.0f MB written to disk", count, took.Seconds(), spent.Seconds(), float64(diskWrites(t)-written)/1e6)
	repair(t, first, second, sent)
}

// repair changes 100 objects while the second machine is down, and measures what
// crosses the streams, before TLS, until it has them: all but the objects
// themselves counts as metadata.
func repair(t *testing.T, first, second *machine, sent *meter) {
	t.Helper()
	second.stop()
	rng := rand.New(rand.NewPCG(2, 2)) //nolint:gosec // a test's
	values, keys := 0, 0
	for i := range 100 {
		value := object(rng, i, 5000)
		key := fmt.Sprintf("/registry/configmaps/default/object-%d", i)
		first.put(key, string(value))
		values, keys = values+len(value), keys+len(key)
	}
	before := sent.bytes.Load()
	second.start(first.addr)
	began := time.Now()
	eventually(t, "differences are repaired", func() bool { return agreed(first, second) })
	took, rest := time.Since(began), sent.bytes.Load()-before-int64(values)
	t.Logf("100 differences repaired in %.2f s: %d bytes of objects, %d bytes else; the keys alone have %d", took.Seconds(), values, rest, keys)
	if rest > 10_000 {
		t.Errorf("100 differences cost %d bytes beside the objects, at most 10,000 are promised", rest)
	}
}

// meter is real sockets that count what replication streams carry.
type meter struct {
	gossip.Network
	bytes atomic.Int64
}

func (m *meter) Open(e gossip.Endpoint) (gossip.Port, error) {
	p, err := gossip.Sockets().Open(e)
	return &meteredPort{Port: p, meter: m}, err
}

type meteredPort struct {
	gossip.Port
	meter *meter
}

func (p *meteredPort) Dial(ctx context.Context, to netip.AddrPort, name, protocol string) (net.Conn, string, error) {
	c, peer, err := p.Port.Dial(ctx, to, name, protocol)
	if err == nil && protocol == gossip.ProtocolStore {
		c = &meteredConn{Conn: c, meter: p.meter}
	}
	return c, peer, err
}

type meteredConn struct {
	net.Conn
	meter *meter
}

func (c *meteredConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.meter.bytes.Add(int64(n))
	return n, err
}

func (c *meteredConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.meter.bytes.Add(int64(n))
	return n, err
}

// diskWrites returns the bytes that this process has had written to disk.
func diskWrites(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Logf("bytes written are not known: %v", err)
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var n int64
		if _, err := fmt.Sscanf(line, "write_bytes: %d", &n); err == nil {
			return n
		}
	}
	return 0
}

// processorTime is what this process has used.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// fill puts objects of 5 KB into a machine's store.
func fill(t *testing.T, m *machine, count int) {
	t.Helper()
	began := time.Now()
	var group sync.WaitGroup
	const writers = 64
	for w := range writers {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w))) //nolint:gosec // a test's
			for i := w; i < count; i += writers {
				key := fmt.Appendf(nil, "/registry/configmaps/default/object-%d", i)
				if _, err := m.store.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: key, Value: object(rng, i, 5000)}}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	t.Logf("%d objects written in %.2f s", count, time.Since(began).Seconds())
}
