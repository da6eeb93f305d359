package gossip

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

func TestElect(t *testing.T) {
	m := func(name string, birth crdt.Stamp, s State) Member { return Member{Name: name, Birth: birth, State: s} }
	for what, c := range map[string]struct {
		members []Member
		want    string
	}{
		"nobody":             {nil, ""},
		"oldest":             {[]Member{m("a", 3, StateAlive), m("b", 1, StateAlive), m("c", 2, StateAlive)}, "b"},
		"name breaks ties":   {[]Member{m("b", 1, StateAlive), m("a", 1, StateAlive)}, "a"},
		"suspect keeps it":   {[]Member{m("a", 1, StateSuspect), m("b", 2, StateAlive)}, "a"},
		"dead loses it":      {[]Member{m("a", 1, StateDead), m("b", 2, StateAlive)}, "b"},
		"left loses it":      {[]Member{m("a", 1, StateLeft), m("b", 2, StateAlive)}, "b"},
		"restarting gave up": {[]Member{m("a", 1, StateRestarting), m("b", 2, StateAlive)}, "b"},
		"all restart":        {[]Member{m("a", 1, StateRestarting)}, ""},
	} {
		leader, ok := Elect(c.members)
		if leader.Name != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q leads, want %q", what, leader.Name, c.want)
		}
	}
}

func TestState(t *testing.T) {
	now := time.Unix(1000, 0)
	limits := thresholds{suspect: time.Second, dead: 2 * time.Second}
	speaks := evidence{known: true}
	quiet := func(d time.Duration) evidence { return evidence{known: true, silent: d} }
	window := card{restart: now.Add(time.Minute)}
	for what, c := range map[string]struct {
		standing standing
		card     card
		evidence evidence
		want     State
	}{
		"serf alone":                 {standing: standingAlive, want: StateAlive},
		"speaks":                     {standing: standingAlive, evidence: speaks, want: StateAlive},
		"silent":                     {standing: standingAlive, evidence: quiet(time.Second), want: StateSuspect},
		"stream reset":               {standing: standingAlive, evidence: evidence{known: true, broken: true}, want: StateSuspect},
		"failed":                     {standing: standingFailed, want: StateDead},
		"failed but spoke just now":  {standing: standingFailed, evidence: quiet(time.Second), want: StateSuspect},
		"failed and silent for long": {standing: standingFailed, evidence: quiet(2 * time.Second), want: StateDead},
		"left":                       {standing: standingLeft, want: StateLeft},
		"leaving":                    {standing: standingAlive, card: card{leaving: true}, want: StateLeft},
		"restarting":                 {standing: standingAlive, card: window, want: StateRestarting},
		"restarting and gone":        {standing: standingFailed, card: window, want: StateRestarting},
		"restart took too long":      {standing: standingFailed, card: card{restart: now}, want: StateDead},
		"unknown to serf":            {standing: standingNone, want: StateDead},
	} {
		if got := state(peer{standing: c.standing, card: c.card}, c.evidence, now, limits); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
}

func TestTagsRoundTrip(t *testing.T) {
	c := card{
		number: 65535, origin: 1<<64 - 1, birth: 1<<63 + 5, version: "v1.22.333-rc.1+build",
		api: netip.MustParseAddrPort("[2001:db8::1]:6443"), restart: time.UnixMilli(1790000000123), leaving: true,
	}
	size := 1
	for k, v := range c.tags() {
		size += len(k) + len(v) + 6
	}
	if size > 400 {
		t.Errorf("tags take %d bytes of 512", size)
	}
	if got := readCard(c.tags()); got != c {
		t.Errorf("read %+v, wrote %+v", got, c)
	}
	if got := readCard(map[string]string{tagNumber: "zzzzzzzz", tagBirth: "-", tagAPI: "x", tagRestart: "?"}); got != (card{}) {
		t.Errorf("malformed tags read as %+v", got)
	}
}

func TestCompatible(t *testing.T) {
	for _, c := range []struct {
		a, b string
		ok   bool
	}{{"v1.2.3", "v1.9.0", true}, {"1.2.3", "v1.0.0", true}, {"v1.2.3", "v2.0.0", false}, {"v0.1.0", "v1.0.0", false}, {"", "", true}, {"v1.0.0", "", false}} {
		if err := compatible(c.a, c.b); (err == nil) != c.ok {
			t.Errorf("%q and %q: %v", c.a, c.b, err)
		}
	}
}

// The graph of a large cluster must be connected in the direction in which
// changes flow, whatever is drawn, and have a small diameter.
func TestGraphIsConnected(t *testing.T) {
	const n, mesh, degree = 200, 10, 5
	live := make(map[string]bool, n)
	for i := range n {
		live[fmt.Sprintf("node-%d", i)] = true
	}
	edges := make(map[string]map[string]bool, n)
	for name := range live {
		others := make(map[string]bool, n-1)
		for o := range live {
			if o != name {
				others[o] = true
			}
		}
		var tn turn
		edges[name] = tn.choose(time.Unix(0, 0), name, others, mesh, degree)
		if len(edges[name]) != degree || edges[name][name] {
			t.Fatalf("%s tails %v", name, edges[name])
		}
		again := tn.choose(time.Unix(1, 0), name, others, mesh, degree)
		if !reflect.DeepEqual(again, edges[name]) {
			t.Fatalf("%s changes whom it tails before its time", name)
		}
	}
	for start := range live {
		if far := diameterFrom(start, edges); far < 0 || far > 12 {
			t.Fatalf("from %s the farthest is %d hops away", start, far)
		}
	}
}

// diameterFrom returns how many hops away the farthest is that start reaches,
// -1 when it does not reach all.
func diameterFrom(start string, edges map[string]map[string]bool) int {
	dist := map[string]int{start: 0}
	far := 0
	for queue := []string{start}; len(queue) > 0; queue = queue[1:] {
		for next := range edges[queue[0]] {
			if _, ok := dist[next]; !ok {
				dist[next] = dist[queue[0]] + 1
				far = max(far, dist[next])
				queue = append(queue, next)
			}
		}
	}
	if len(dist) != len(edges) {
		return -1
	}
	return far
}

func TestMeshTailsAll(t *testing.T) {
	live := map[string]bool{"a": true, "b": true}
	var tn turn
	if got := tn.choose(time.Unix(0, 0), "c", live, 10, 5); !reflect.DeepEqual(got, live) {
		t.Errorf("tails %v", got)
	}
	if tn.due(time.Unix(1e6, 0)) {
		t.Error("a mesh is drawn anew")
	}
}

func TestSidesGiveWayOneWay(t *testing.T) {
	sides := []side{{0, "a"}, {1, "a"}, {1, "b"}, {3, "c"}, {3, "d"}}
	for i, a := range sides {
		for j, b := range sides {
			if i != j && a.givesWay(b) == b.givesWay(a) {
				t.Errorf("%+v and %+v: both or neither give way", a, b)
			}
		}
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	v := crdt.Vector{1: 5, 1 << 60: 1 << 40}
	same := func(got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read %+v, %v, wrote %+v", got, err, want)
		}
	}
	h := hello{Mode: modeTail, Cluster: "c", Name: "n", Self: seniority{9, time.Hour}, Lead: seniority{1, 1<<63 - 1}}
	gotHello, err := decodeHello(h.encode())
	same(gotHello, h, err)
	w := welcome{Name: "n", Self: seniority{1, 4}, Lead: seniority{5, 6}, Origin: 2, Revision: -3, Vector: v, Stable: v}
	gotWelcome, err := decodeWelcome(w.encode())
	same(gotWelcome, w, err)
	f := fail{Code: failForgotten, Text: "why", Side: side{3, "a"}}
	gotFail, err := decodeFail(f.encode())
	same(gotFail, f, err)
	b := beat{Probe: 1, Now: 2, Stable: v, Digest: "d", Whole: v, Tailed: true}
	gotBeat, err := decodeBeat(b.encode())
	same(gotBeat, b, err)
	k := ack{Parts: 7, Revision: 1 << 60, Vector: v}
	gotAck, err := decodeAck(k.encode())
	same(gotAck, k, err)
	p := pull{Want: []int{1, 5}}
	gotPull, err := decodePull(p.encode())
	same(gotPull, p, err)
	record := crdt.Put(nil, []byte("/k"), []byte(`{"a":1}`), crdt.Dot{Origin: 1, Seq: 2}, 3, crdt.Change{})
	big := crdt.Put(nil, []byte("/big"), bytes.Repeat([]byte("x"), largeBytes), crdt.Dot{Origin: 9, Seq: 1}, 3, crdt.Change{})
	r := records{Last: true, Revision: 12, Vector: v, Records: []*crdt.Record{record, big}}
	withheld := r.withhold(1)
	if len(withheld) != 1 || withheld[0] != big || len(r.Large) != 1 {
		t.Fatalf("withheld %v, announced %v", withheld, r.Large)
	}
	kind, body := r.append(nil)
	gotRecords, err := decodeRecords(kind, body)
	same(gotRecords, &r, err)
	// So many that their heads are compressed.
	many, raw := records{Last: true}, 0
	for i := range 100 {
		one := crdt.Put(nil, fmt.Appendf(nil, "/k/%d", i), []byte(`{"a":1}`), crdt.Dot{Origin: 1, Seq: uint64(i + 1)}, 3, crdt.Change{})
		many.Records, raw = append(many.Records, one), raw+len(crdt.AppendRecord(nil, one))
	}
	kind, body = many.append(nil)
	if len(body) > raw/2 {
		t.Errorf("%d bytes of records make a message of %d", raw, len(body))
	}
	gotRecords, err = decodeRecords(kind, body)
	same(gotRecords, &many, err)
	if _, err := unpack(pack(bytes.Repeat([]byte("x"), 1<<20)), 1<<10); !errors.Is(err, errWire) {
		t.Errorf("more than was promised is unpacked: %v", err)
	}
}

func TestAckQueue(t *testing.T) {
	q := newAckQueue(time.Hour)
	released := map[int64]bool{}
	hold := func(rev int64) { q.hold(rev, func() { released[rev] = true }) }
	hold(1)
	if !released[1] {
		t.Error("a writer waits though there is no peer")
	}
	detach := q.attach("p")
	hold(2)
	hold(3)
	q.ack("p", 2)
	if !released[2] || released[3] {
		t.Errorf("after an ack of 2: %v", released)
	}
	q.judge(map[string]bool{"p": false})
	if !released[3] {
		t.Error("a writer waits for a peer that is not live")
	}
	q.judge(map[string]bool{"p": true})
	hold(4)
	q.expire(time.Now().Add(2 * time.Hour))
	if !released[4] {
		t.Error("a writer waits for ever")
	}
	hold(5)
	if !released[5] {
		t.Error("a writer waits for a peer that was passed over")
	}
	q.ack("p", 5)
	hold(6)
	if released[6] {
		t.Error("a peer that has caught up is not waited for")
	}
	detach()
	if !released[6] {
		t.Error("a writer waits for a peer that is gone")
	}
	want := AckCounts{Peer: 1, Alone: 4, TimedOut: 1, PassedOver: 1}
	if got := q.count(); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

func TestMessageBounds(t *testing.T) {
	promise := []byte{0, 255, 255, 255, byte(msgRecords), 1, 2, 3}
	if _, _, err := readMessage(bufio.NewReader(bytes.NewReader(promise)), maxMessage); err == nil {
		t.Error("a message that ends early is read")
	}
	if _, _, err := readMessage(bufio.NewReader(strings.NewReader("\xff\xff\xff\xff\x01")), maxMessage); err == nil {
		t.Error("an endless message is read")
	}
	var b bytes.Buffer
	body := bytes.Repeat([]byte("abc"), 100_000)
	if err := writeMessage(&b, msgRecords, body); err != nil {
		t.Fatal(err)
	}
	kind, got, err := readMessage(bufio.NewReader(&b), maxMessage)
	if err != nil || kind != msgRecords || !bytes.Equal(got, body) {
		t.Errorf("read %d bytes of kind %d, %v", len(got), kind, err)
	}
}

// FuzzMessages feeds every decoder what a peer could send.
func FuzzMessages(f *testing.F) {
	v := crdt.Vector{1: 5}
	record := crdt.Put(nil, []byte("/k"), []byte(`{"a":1}`), crdt.Dot{Origin: 1, Seq: 2}, 3, crdt.Change{})
	_, sent := (&records{Last: true, Vector: v, Records: []*crdt.Record{record}}).append(nil)
	_, announced := (&records{Records: []*crdt.Record{nil}, Large: []large{{Index: 0, Dot: crdt.Dot{Origin: 1, Seq: 1}}}}).append(nil)
	_, packed := (&records{Records: slices.Repeat([]*crdt.Record{record}, 40)}).append(nil)
	f.Add(byte(msgRecords), packed)
	for kind, body := range map[messageType][]byte{
		msgHello: (&hello{Name: "n"}).encode(), msgWelcome: (&welcome{Vector: v}).encode(), msgFail: (&fail{Text: "x"}).encode(),
		msgRecords: sent, msgAnnounce: announced, msgPull: (&pull{Want: []int{1}}).encode(),
		msgBeat: (&beat{Whole: v}).encode(), msgAck: (&ack{Vector: v}).encode(), msgProbe: encodeProbe(1),
	} {
		f.Add(byte(kind), body)
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		switch messageType(kind) {
		case msgHello:
			_, _ = decodeHello(body)
		case msgWelcome:
			_, _ = decodeWelcome(body)
		case msgFail:
			_, _ = decodeFail(body)
		case msgRecords, msgAnnounce:
			r, err := decodeRecords(messageType(kind), body)
			if err == nil {
				holes := 0
				for _, one := range r.Records {
					if one == nil {
						holes++
					} else if one.Valid() != nil {
						t.Error("a record that is not valid")
					}
				}
				if holes != len(r.Large) {
					t.Errorf("%d holes, %d announcements", holes, len(r.Large))
				}
			}
		case msgPull:
			_, _ = decodePull(body)
		case msgBeat:
			_, _ = decodeBeat(body)
		case msgAck:
			_, _ = decodeAck(body)
		case msgProbe:
			_, _ = decodeProbe(body)
		}
	})
}
