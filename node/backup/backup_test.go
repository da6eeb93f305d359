package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/mootkube/moot/node/join"
	"github.com/mootkube/moot/node/pki"
)

type entry struct{ key, value string }

func material(t testing.TB) pki.Material {
	t.Helper()
	dir := t.TempDir()
	if _, err := pki.Ensure(dir, pki.Params{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		ServiceIP: netip.MustParseAddr("10.43.0.1"), ClusterDomain: "cluster.local", APIPort: 6443,
	}, time.Now()); err != nil {
		t.Fatal(err)
	}
	m, err := pki.Export(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func header() Header {
	return Header{
		Cluster: "c0ffee", Node: "n1", Version: "0.1.0", Created: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), Revision: 42,
		Settings: join.Settings{
			ClusterCIDR: join.Networks{First: netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDR: join.Networks{First: netip.MustParsePrefix("10.43.0.0/16")}, ClusterDomain: "cluster.local",
		},
	}
}

func write(t testing.TB, m pki.Material, entries []entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, header(), m)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := w.Put([]byte(e.key), []byte(e.value)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func some(n int) []entry {
	source := rand.New(rand.NewPCG(1, 2))
	var entries []entry
	for i := range n {
		value := make([]byte, source.IntN(3000))
		for j := range value {
			value[j] = byte(source.UintN(256))
		}
		entries = append(entries, entry{fmt.Sprintf("/registry/things/%06d", i), string(value)})
	}
	return entries
}

func TestRoundTrip(t *testing.T) {
	m := material(t)
	for _, entries := range [][]entry{nil, {{"k", ""}}, some(500), {{"/big", strings.Repeat("x", 5<<20)}}} {
		data := write(t, m, entries)
		r, err := NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if r.Header != header() || !bytes.Equal(r.Material.Peers, m.Peers) {
			t.Errorf("header %+v", r.Header)
		}
		for _, e := range entries {
			key, value, err := r.Next()
			if err != nil || string(key) != e.key || string(value) != e.value {
				t.Fatalf("%s: got %s with %d bytes: %v", e.key, key, len(value), err)
			}
		}
		if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("after the last: %v", err)
		}
		s, err := Verify(bytes.NewReader(data))
		if err != nil || s.Keys != int64(len(entries)) {
			t.Errorf("verified %d keys: %v", s.Keys, err)
		}
	}
}

// A file that ends early or has one byte changed is never taken for whole.
func TestDamageIsNoticed(t *testing.T) {
	entries := some(20)
	data := write(t, material(t), entries)
	for n := range len(data) {
		if n > 200 && n < len(data)-200 && n%97 != 0 {
			continue
		}
		if _, err := Verify(bytes.NewReader(data[:n])); err == nil {
			t.Fatalf("cut to %d of %d bytes: taken for whole", n, len(data))
		} else if n > len(magic) && !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
		spoiled := bytes.Clone(data)
		spoiled[n] ^= 0x10
		if content, err := readAll(spoiled); err == nil && !slices.Equal(content, entries) { // zstd ignores one bit
			t.Fatalf("byte %d changed: taken for whole, with other content", n)
		}
	}
	if _, err := Verify(bytes.NewReader(append(bytes.Clone(data), "more"...))); !errors.Is(err, ErrDamaged) {
		t.Errorf("with something after its end: %v", err)
	}
	if _, err := Verify(bytes.NewReader(append(bytes.Clone(data), data[len(magic):]...))); !errors.Is(err, ErrDamaged) {
		t.Errorf("with itself after its end: %v", err)
	}
}

func readAll(data []byte) ([]entry, error) {
	r, err := NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var entries []entry
	for {
		key, value, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{string(key), string(value)})
	}
}

func TestOtherFiles(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "text": "apiVersion: v1\nkind: List\n", "short": "moot"} {
		if _, err := Verify(strings.NewReader(text)); !errors.Is(err, ErrNotABackup) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := Verify(strings.NewReader("moot backup 2\nwhatever"))
	if !errors.Is(err, ErrNotABackup) || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a later version: %v", err)
	}
}

func TestWriterRefuses(t *testing.T) {
	m := material(t)
	if _, err := NewWriter(io.Discard, header(), pki.Material{}); err == nil {
		t.Error("a backup without keys")
	}
	w, err := NewWriter(io.Discard, header(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Put([]byte("b"), nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Put([]byte("a"), nil); err == nil {
		t.Error("keys out of order")
	}
	if err := w.Close(); err == nil {
		t.Error("closed after a failure")
	}
	full := errors.New("disk full")
	if _, err := NewWriter(failing{full}, header(), m); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// FuzzVerify gives the reader what may stand inside an intact zstd stream.
func FuzzVerify(f *testing.F) {
	data := write(f, material(f), some(3))
	dec, err := zstd.NewReader(bytes.NewReader(data[len(magic):]))
	if err != nil {
		f.Fatal(err)
	}
	inner, err := io.ReadAll(dec)
	if err != nil {
		f.Fatal(err)
	}
	dec.Close()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(inner)
	f.Add(inner[:len(inner)/2])
	f.Add([]byte("H\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, inner []byte) {
		_, err := Verify(io.MultiReader(strings.NewReader(magic), bytes.NewReader(enc.EncodeAll(inner, nil))))
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("error %v", err)
		}
	})
}
