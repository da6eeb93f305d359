package scenario

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i))
	}
	for _, c := range []struct {
		of   []time.Duration
		p    float64
		want time.Duration
	}{
		{nil, 0.5, 0}, {[]time.Duration{7}, 0.99, 7}, {[]time.Duration{3, 1, 2}, 0.5, 2}, {[]time.Duration{4, 3, 2, 1}, 0.5, 2},
		{hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred, 0, 1},
	} {
		if got := quantile(slices.Clone(c.of), c.p); got != c.want {
			t.Errorf("quantile %v of %d: %d, want %d", c.p, len(c.of), got, c.want)
		}
	}
}

// A watch that skips a change has shown it with the next; a later repeat does
// not count.
func TestSightings(t *testing.T) {
	s := &sightings{at: make([]time.Time, 4), last: make(chan struct{})}
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	s.saw(-1, at(1))
	s.saw(0, at(2))
	s.saw(2, at(3))
	s.saw(2, at(4))
	select {
	case <-s.last:
		t.Fatal("the last was not seen yet")
	default:
	}
	s.saw(9, at(5))
	<-s.last
	if want := []time.Time{at(2), at(3), at(3), at(5)}; !slices.Equal(s.at, want) {
		t.Errorf("%v, want %v", s.at, want)
	}
}

func TestCutWord(t *testing.T) {
	if rest, ok := cutWord("a b a", "a"); !ok || rest != "b a" {
		t.Errorf("%q, %t", rest, ok)
	}
	if rest, ok := cutWord("ab", "a"); ok || rest != "ab" {
		t.Errorf("%q, %t", rest, ok)
	}
}

func TestIsOurs(t *testing.T) {
	to := netip.MustParseAddr("10.77.0.12")
	// Ethernet, IPv4 from .11 to .12, UDP from 7443 to 7443, one byte.
	good, err := hex.DecodeString("026d0a4d000c026d0a4d000b0800" + "4500001d000040004011" + "0000" + "0a4d000b0a4d000c" + "1d131d1300090000" + "2a")
	if err != nil {
		t.Fatal(err)
	}
	if !isOurs(good, to) {
		t.Error("a member's datagram is not taken")
	}
	if isOurs(good, netip.MustParseAddr("10.77.0.11")) {
		t.Error("a datagram to another node is taken")
	}
	for _, i := range []int{12, 23, 36, 37} {
		bad := slices.Clone(good)
		bad[i]++
		if isOurs(bad, to) {
			t.Errorf("taken with byte %d changed", i)
		}
	}
	if isOurs(good[:41], to) || isOurs(nil, to) {
		t.Error("a short frame is taken")
	}
}

func TestAfterLongestGap(t *testing.T) {
	began := time.Unix(100, 0)
	at := func(ms ...int) (a actions) {
		for _, m := range ms {
			a = append(a, began.Add(time.Duration(m)*time.Millisecond))
		}
		return a
	}
	for _, c := range []struct {
		of   actions
		want time.Duration
	}{
		{nil, 0}, {at(-50, -10), 0}, {at(-5000, 300), 300}, {at(-50, 50, 150, 2150, 2250), 2150}, {at(50, 2050, 2060, 2100), 2050},
	} {
		if got, _ := c.of.afterLongestGap(began); got != c.want*time.Millisecond {
			t.Errorf("%v: %s, want %d ms", c.of, got, c.want)
		}
	}
}
