package join

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
)

func register(t *testing.T, s Store, reg Registration) {
	t.Helper()
	value, err := json.Marshal(reg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: []byte(membersPrefix + reg.Name), Value: value}}}); err != nil {
		t.Fatal(err)
	}
}

func TestSettle(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	r := NewRegistry(openStore(t), func() time.Time { return now })
	self := Self{Name: "n1", Machine: "mine", Address: netip.MustParseAddrPort("192.0.2.1:7443"), API: 6443, Version: "0.1.0"}

	// A cluster's first member that was killed before it was registered.
	reg, err := r.Settle(t.Context(), self, false)
	if err != nil || reg.Number != firstNumber || reg.Machine == "mine" || !reg.Joined.Equal(now) {
		t.Fatalf("first member %+v: %v", reg, err)
	}
	self.Number, self.Address = reg.Number, netip.MustParseAddrPort("192.0.2.9:7443")
	if reg, err = r.Settle(t.Context(), self, false); err != nil || reg.Address != self.Address || reg.Number != firstNumber {
		t.Errorf("at another address %+v: %v", reg, err)
	}

	// The other side of a cut gave our number to a machine too: the younger,
	// by the time of joining, takes another.
	register(t, r.store, Registration{Name: "n0", Number: firstNumber, Machine: "x", Joined: now.Add(time.Hour)})
	if reg, err = r.Settle(t.Context(), self, false); err != nil || reg.Number != firstNumber {
		t.Errorf("the older gave way: %+v, %v", reg, err)
	}
	register(t, r.store, Registration{Name: "n2", Number: firstNumber, Machine: "x", Joined: now.Add(-time.Hour)})
	if reg, err = r.Settle(t.Context(), self, false); err != nil || reg.Number == firstNumber {
		t.Errorf("the younger did not give way: %+v, %v", reg, err)
	}
	moved := reg.Number
	if reg, err = r.Settle(t.Context(), self, false); err != nil || reg.Number != moved {
		t.Errorf("the number changed again: %+v, %v", reg, err)
	}

	// And our name, and theirs won.
	register(t, r.store, Registration{Name: "n1", Number: 7, Machine: "theirs", Joined: now.Add(-time.Hour), Address: self.Address})
	if _, err = r.Settle(t.Context(), self, false); !errors.Is(err, ErrNameTaken) {
		t.Errorf("the name is another's: %v", err)
	}
	if removed, err := r.Remove(t.Context(), "n1"); err != nil || !removed {
		t.Errorf("remove: %v, %v", removed, err)
	}
	if removed, err := r.Remove(t.Context(), "n1"); err != nil || removed {
		t.Errorf("remove again: %v, %v", removed, err)
	}
	if _, err := r.Settle(t.Context(), self, false); !errors.Is(err, ErrRemoved) {
		t.Errorf("a member that was removed: %v", err)
	}
	self.Number = 4711
	if reg, err := r.Settle(t.Context(), self, true); err != nil || reg.Number != 4711 {
		t.Errorf("a machine that joined just now: %+v, %v", reg, err)
	}
}

func TestFreeNumber(t *testing.T) {
	var all []Registration
	seen := map[crdt.NodeNumber]bool{0: true, firstNumber: true}
	for i := range 200 {
		number, err := freeNumber(fmt.Sprintf("node-%d", i), all)
		if err != nil || seen[number] {
			t.Fatalf("node-%d got %d: %v", i, number, err)
		}
		seen[number] = true
		all = append(all, Registration{Name: fmt.Sprintf("node-%d", i), Number: number})
	}
	// Two sides that know nothing of each other seldom choose the same.
	same := 0
	for i := range 100 {
		a, errA := freeNumber(fmt.Sprintf("left-%d", i), nil)
		b, errB := freeNumber(fmt.Sprintf("right-%d", i), nil)
		if err := errors.Join(errA, errB); err != nil {
			t.Fatal(err)
		}
		if a == b {
			same++
		}
	}
	if same > 2 {
		t.Errorf("%d of 100 pairs collide", same)
	}
	full := make([]Registration, 0, math.MaxUint16)
	for n := range math.MaxUint16 {
		full = append(full, Registration{Number: crdt.NodeNumber(n + 1)})
	}
	if _, err := freeNumber("n", full); err == nil {
		t.Error("a number of none left")
	}
	last, err := freeNumber("n", full[:math.MaxUint16-1])
	if err != nil || last != math.MaxUint16 {
		t.Errorf("the last number: %d, %v", last, err)
	}
}

func TestTokensLast(t *testing.T) {
	clock := &clock{at: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	tokens := NewTokens(openStore(t), clock.now)
	pin := strings.Repeat("ab", pinDigits/2)
	forever, info, err := tokens.Create(t.Context(), pin, 0, "for ever")
	if err != nil || !info.Expires.IsZero() {
		t.Fatalf("%+v: %v", info, err)
	}
	short, _, err := tokens.Create(t.Context(), pin, time.Minute, "")
	if err != nil {
		t.Fatal(err)
	}
	clock.add(time.Minute - time.Second)
	if _, refusal, err := tokens.check(t.Context(), short.credential()); refusal != nil || err != nil {
		t.Errorf("just before its end: %v, %v", refusal, err)
	}
	clock.add(time.Second)
	if _, refusal, err := tokens.check(t.Context(), short.credential()); refusal == nil || refusal.Reason != ReasonExpired || err != nil {
		t.Errorf("at its end: %v, %v", refusal, err)
	}
	// Who has the id of an expired token, and no secret, does not learn that.
	if _, refusal, err := tokens.check(t.Context(), Secret(short.ID+"."+strings.Repeat("0", 32))); refusal == nil || refusal.Reason != ReasonToken || err != nil {
		t.Errorf("wrong secret: %v, %v", refusal, err)
	}
	clock.add(100 * 365 * 24 * time.Hour)
	if _, refusal, err := tokens.check(t.Context(), forever.credential()); refusal != nil || err != nil {
		t.Errorf("in a hundred years: %v, %v", refusal, err)
	}
	// Long expired tokens go with the next one made.
	if _, _, err := tokens.Create(t.Context(), pin, 0, ""); err != nil {
		t.Fatal(err)
	}
	list, err := tokens.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Errorf("tokens %+v: %v", list, err)
	}
	if err := tokens.Revoke(t.Context(), short.ID); !errors.Is(err, ErrNoToken) {
		t.Errorf("revoke of none: %v", err)
	}
	if err := tokens.Revoke(t.Context(), "../x"); !errors.Is(err, ErrNoToken) {
		t.Errorf("revoke of nonsense: %v", err)
	}
	if err := tokens.used(t.Context(), short.ID); err != nil {
		t.Errorf("use of a revoked token: %v", err)
	}
	if _, _, err := tokens.Create(t.Context(), pin, -time.Second, ""); err == nil {
		t.Error("a token that has expired already")
	}
	if _, _, err := tokens.Create(t.Context(), "none", 0, ""); err == nil {
		t.Error("a token without a pin")
	}
}

func TestToken(t *testing.T) {
	pin := strings.Repeat("0f", pinDigits/2)
	token, err := newToken(pin)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := ParseToken(" " + token.Text() + "\n"); err != nil || back != token {
		t.Errorf("read back %v: %v", back == token, err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", token, token, token, token.Secret); strings.Contains(text, string(token.Secret)) {
		t.Errorf("a token prints its secret: %s", text)
	}
	for name, text := range map[string]string{
		"empty": "", "prefix": "moot2" + token.Text()[5:], "cut": token.Text()[:len(token.Text())-1],
		"part missing": strings.Join(strings.Split(token.Text(), ".")[:3], "."), "upper case": strings.ToUpper(token.Text()),
	} {
		_, err := ParseToken(text)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), string(token.Secret)[:8]) {
			t.Errorf("%s: the error holds the secret: %v", name, err)
		}
	}
}

func TestMachine(t *testing.T) {
	dir := t.TempDir()
	first, err := Machine(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Machine(dir)
	if err != nil || second != first || !isHex(string(first), 2*secretBytes) {
		t.Errorf("a data directory's secret changed: %v", err)
	}
	if other, err := Machine(t.TempDir()); err != nil || other == first {
		t.Errorf("another directory has the same: %v", err)
	}
}

func TestLimiter(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	l := newLimiter()
	for i := range limitedSources {
		if !l.allow(fmt.Sprint(i), now) {
			t.Fatalf("source %d was refused", i)
		}
	}
	if l.allow("one more", now) {
		t.Error("more sources than are remembered")
	}
	now = now.Add(attemptEvery)
	if !l.allow("one more", now) {
		t.Error("refused though the others have waited")
	}
	if len(l.sources) > limitedSources {
		t.Errorf("%d sources are remembered", len(l.sources))
	}
}

func TestMajor(t *testing.T) {
	for version, want := range map[string]string{"0.1.0-dev": "0.1", "v0.1.9": "0.1", "1.2.3": "1", "v2": "2", "": ""} {
		if got := major(version); got != want {
			t.Errorf("%q: %q, want %q", version, got, want)
		}
	}
}
