package years

import "container/heap"

// event is something that happens at a point of simulated time. Events of one
// moment happen in the order in which they were planned.
type event struct {
	at   int64 // microseconds
	seq  uint64
	kind kind
	a, b int // nodes, or whatever the kind says
	do   func()
}

// kind says what an event is, for the trace.
type kind uint8

const (
	evWrite kind = iota + 1
	evSync
	evPoll
	evDeliver
	evAck
	evGiveUp
	evDial
	evTick
	evServe
	evFault
	evRepair
)

type events []*event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	if q[i].at != q[j].at {
		return q[i].at < q[j].at
	}
	return q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(*event)) }
func (q *events) Pop() any {
	old := *q
	n := len(old) - 1
	e := old[n]
	old[n] = nil
	*q = old[:n]
	return e
}

// plan lets do happen after a while.
func (w *world) plan(after int64, k kind, a, b int, do func()) {
	w.planned++
	heap.Push(&w.queue, &event{at: w.now + max(after, 0), seq: w.planned, kind: k, a: a, b: b, do: do})
}

// step lets the next event happen.
func (w *world) step() {
	e := heap.Pop(&w.queue).(*event)
	w.now = e.at
	w.note(uint64(e.at), uint64(e.kind), uint64(e.a)<<8|uint64(e.b)) //nolint:gosec // small and positive
	e.do()
}

// note mixes numbers into the trace (FNV-1a, a word at a time).
func (w *world) note(numbers ...uint64) {
	for _, n := range numbers {
		w.trace = (w.trace ^ n) * 1099511628211
		w.trace ^= w.trace >> 29
	}
}
