package years

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// What clients write: objects of a few fields each, on few keys, so that they
// get in each other's way.
const (
	keys       = 40
	fields     = 5
	writeEvery = 90 * time.Second // at rest
	burstMost  = 60               // writes in the minute after a fault
)

// write is what a client did, and what it knew.
type write struct {
	number int
	key    string
	dot    crdt.Dot
	knew   crdt.Vector // of the key's changes
	kind   writeKind
	uid    string
	field  string
	token  string // what it wrote, found nowhere else

	answered bool // the client was told that it is kept
	excused  bool // every disk that had it is gone
	gone     bool // it never came to a disk
}

type writeKind uint8

const (
	creates writeKind = iota
	updates
	deletes
)

// object is what clients store.
type object struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metadata          `json:"metadata"`
	Data       map[string]string `json:"data"`
}

type metadata struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

func (w *world) planWrites() {
	w.plan(w.exponential(int64(writeEvery/time.Microsecond)), evWrite, 0, 0, func() {
		w.clientWrites()
		w.planWrites()
	})
}

// burst has clients react to a fault, on few keys.
func (w *world) burst() {
	hot := w.rng.IntN(keys - 4)
	for range w.rng.IntN(burstMost) {
		key := hot + w.rng.IntN(4)
		w.plan(w.between(0, 2*time.Minute), evWrite, 0, 0, func() { w.clientWritesTo(key) })
	}
}

func (w *world) clientWrites() { w.clientWritesTo(w.rng.IntN(keys)) }

func (w *world) clientWritesTo(key int) {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if w.quiet || !n.up || !n.serving {
		return
	}
	n.clientWrite(fmt.Sprintf("/registry/configmaps/default/c%d", key))
}

// clientWrite does one random write against what the node has.
func (n *node) clientWrite(key string) {
	w := n.w
	was := n.head.keys[key].rec
	wr := &write{key: key, knew: crdt.Vector{}, field: fmt.Sprintf("f%d", w.rng.IntN(fields))}
	if was != nil {
		wr.knew = was.Seen()
	}
	w.oracle.number++
	wr.number = w.oracle.number
	wr.token = fmt.Sprintf("w%d.", wr.number)
	g := n.begin()
	var r *crdt.Record
	switch {
	case was == nil || was.Deleted:
		wr.kind, wr.uid = creates, fmt.Sprintf("%08x-0000-4000-9000-%012x", w.cfg.Seed&0xffffffff, wr.number)
		r = n.set(g, key, encode(object{APIVersion: "v1", Kind: "ConfigMap", Metadata: metadata{Name: "c", UID: wr.uid}, Data: map[string]string{wr.field: wr.token}}))
	case w.rng.IntN(8) == 0:
		wr.kind, wr.uid = deletes, was.UID
		r = n.remove(g, key)
	default:
		var o object
		if err := json.Unmarshal(was.Value, &o); err != nil {
			panic(err)
		}
		if o.Data == nil {
			o.Data = map[string]string{}
		}
		o.Data[wr.field] = wr.token
		wr.kind, wr.uid = updates, was.UID
		r = n.set(g, key, encode(o))
	}
	wr.dot = r.Dot
	g.writes = append(g.writes, wr)
	n.commit(g)
	w.oracle.wrote(wr)
}

func encode(o object) []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return b
}
