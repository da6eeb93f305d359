package gossip

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// A message on a replication stream is its length, a type and a body. The
// follower opens with a hello, the server answers with a welcome or a fail;
// then the server sends records, beats and answers, the follower
// acknowledgements and questions.
type messageType byte

const (
	msgHello    messageType = iota + 1 // follower: who I am
	msgWelcome                         // server: who I am and what I have
	msgFail                            // server: why not; the last message
	msgRecords                         // server: changes in its order
	msgAnnounce                        // server: changes in its order, the large ones without their values
	msgPull                            // follower: send the announced values I name
	msgBeat                            // server: I am alive; answers a probe
	msgAck                             // follower: what is on disk here
	msgProbe                           // follower: what time is it
)

// Bounds of a message.
const (
	wireVersion = 3
	maxMessage  = 96 << 20 // a record of the largest size fits
	maxText     = 4 << 10
	maxRecords  = 1 << 16            // in one message
	firstBytes  = partBytes + 64<<10 // of memory for one that is yet to arrive
	joinedBytes = 16 << 10           // a message below goes in one write: what a record of TLS holds
)

// errWire: the peer sent what is no message of ours.
var errWire = errors.New("malformed replication message")

// writeMessage writes one message, a small one at once: each write is a record
// of TLS, a system call, and a wake of the reader.
func writeMessage(w io.Writer, t messageType, body []byte) error {
	joined := min(len(body), joinedBytes-headBytes)
	first := append(append(make([]byte, 0, headBytes+joined), noHead...), body[:joined]...)
	putHead(first, t, len(body))
	if _, err := w.Write(first); err != nil || joined == len(body) {
		return err
	}
	_, err := w.Write(body[joined:])
	return err
}

const headBytes = 5

// noHead is the room for a message's head; putHead fills it in.
var noHead = make([]byte, headBytes)

// putHead fills in the head of the message that b begins with.
func putHead(b []byte, t messageType, size int) {
	binary.BigEndian.PutUint32(b, uint32(size))
	b[headBytes-1] = byte(t)
}

// readMessage reads one message of at most limit bytes. The memory it takes
// grows with what has arrived, not with what was promised.
func readMessage(r *bufio.Reader, limit int) (messageType, []byte, error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint32(head[:4]))
	if n > limit {
		return 0, nil, fmt.Errorf("%w: %d bytes, at most %d allowed", errWire, n, limit)
	}
	body := make([]byte, 0, min(n, firstBytes))
	for len(body) < n {
		chunk := min(n-len(body), max(len(body), firstBytes))
		if cap(body)-len(body) < chunk {
			grown := make([]byte, len(body), len(body)+chunk)
			copy(grown, body)
			body = grown
		}
		end := len(body) + chunk
		if _, err := io.ReadFull(r, body[len(body):end]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
		body = body[:end]
	}
	return messageType(head[4]), body, nil
}

// decoder takes values off the front of b. After the first error it returns
// zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", errWire, what)
	}
	d.b = nil
}

func (d *decoder) uint() uint64 {
	u, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return u
}

func (d *decoder) int() int64 {
	i, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return i
}

func (d *decoder) bytes(limit int) []byte {
	n := d.uint()
	if n > uint64(limit) {
		d.fail("length out of bounds")
		return nil
	}
	return d.take(n)
}

// take takes n bytes.
func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail("length out of bounds")
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) text() string { return string(d.bytes(maxText)) }

func (d *decoder) vector() crdt.Vector {
	b := d.bytes(len(d.b))
	if d.err != nil || len(b) == 0 {
		return nil
	}
	v, err := crdt.DecodeVector(b)
	if err != nil {
		d.err = fmt.Errorf("%w: %w", errWire, err)
		d.b = nil
	}
	return v
}

// ages reads the ends of greetings. A peer of before them says nothing of ages,
// which is as if it had just started.
func (d *decoder) ages(self, lead *seniority) {
	if len(d.b) == 0 {
		return
	}
	self.age, lead.birth, lead.age = d.age(), crdt.Stamp(d.uint()), d.age()
}

func (d *decoder) age() time.Duration { return time.Duration(min(d.uint(), math.MaxInt64)) }

func appendAges(b []byte, self, lead seniority) []byte {
	b = binary.AppendUvarint(b, uint64(self.age))
	b = binary.AppendUvarint(b, uint64(lead.birth))
	return binary.AppendUvarint(b, uint64(lead.age))
}

// end reports the first error. What a newer version appended is left unread.
func (d *decoder) end() error { return d.err }

func appendBytes(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendVector(b []byte, v crdt.Vector) []byte {
	if len(v) == 0 {
		return binary.AppendUvarint(b, 0)
	}
	return appendBytes(b, v.Append(nil))
}

// What a hello asks for.
const (
	modeTail = iota + 1 // what the follower lacks, and on
	modeAsk             // the welcome, no more
)

// hello opens a stream.
type hello struct {
	Mode    uint64
	Cluster string
	Name    string
	Self    seniority
	Lead    seniority // of the leader, where the follower knows it
}

func (m *hello) encode() []byte {
	b := binary.AppendUvarint(nil, wireVersion)
	b = binary.AppendUvarint(b, m.Mode)
	b = appendBytes(b, []byte(m.Cluster))
	b = appendBytes(b, []byte(m.Name))
	b = binary.AppendUvarint(b, uint64(m.Self.birth))
	return appendAges(b, m.Self, m.Lead)
}

func decodeHello(b []byte) (hello, error) {
	d := decoder{b: b}
	if v := d.uint(); v != wireVersion {
		return hello{}, fmt.Errorf("%w: replication protocol version %d, not %d", errWire, v, wireVersion)
	}
	m := hello{Mode: d.uint(), Cluster: d.text(), Name: d.text(), Self: seniority{birth: crdt.Stamp(d.uint())}}
	d.ages(&m.Self, &m.Lead)
	return m, d.end()
}

// welcome answers a hello.
type welcome struct {
	Name     string
	Self     seniority
	Lead     seniority // of the leader, where the server knows it
	Origin   crdt.Origin
	Revision int64
	Vector   crdt.Vector
	Stable   crdt.Vector
	Beyond   crdt.Vector // see [Replica]
}

func (m *welcome) encode() []byte {
	b := appendBytes(nil, []byte(m.Name))
	b = binary.AppendUvarint(b, uint64(m.Self.birth))
	b = binary.AppendUvarint(b, uint64(m.Origin))
	b = binary.AppendVarint(b, m.Revision)
	b = appendVector(b, m.Vector)
	b = appendVector(b, m.Stable)
	return appendVector(appendAges(b, m.Self, m.Lead), m.Beyond)
}

func decodeWelcome(b []byte) (welcome, error) {
	d := decoder{b: b}
	m := welcome{
		Name: d.text(), Self: seniority{birth: crdt.Stamp(d.uint())}, Origin: crdt.Origin(d.uint()),
		Revision: d.int(), Vector: d.vector(), Stable: d.vector(),
	}
	d.ages(&m.Self, &m.Lead)
	if len(d.b) > 0 { // else an older member, which does not say
		m.Beyond = d.vector()
	}
	return m, d.end()
}

// Why a server refuses a stream.
const (
	failOther = iota
	failForgotten
	failCluster
	failBusy
)

// fail is a server's refusal.
type fail struct {
	Code uint64
	Text string
	Side side // the server's, with failForgotten
}

func (m *fail) encode() []byte {
	b := appendBytes(binary.AppendUvarint(nil, m.Code), []byte(m.Text[:min(len(m.Text), maxText)]))
	b = binary.AppendUvarint(b, m.Side.Members)
	return appendBytes(b, []byte(m.Side.First))
}

func decodeFail(b []byte) (fail, error) {
	d := decoder{b: b}
	m := fail{Code: d.uint(), Text: d.text(), Side: side{Members: d.uint(), First: d.text()}}
	return m, d.end()
}

// beat says that the server lives, answers a probe, and tells what has changed
// since the last one.
type beat struct {
	Probe  int64 // the follower's time in the probe that this answers, 0 for none
	Now    int64 // the server's time, Unix nanoseconds
	Stable crdt.Vector
	Digest string      // of the server's content, when it is Whole
	Whole  crdt.Vector // the server's vector that Digest belongs to
	Tailed bool        // the follower was not refused
}

func (m *beat) encode() []byte {
	b := binary.AppendVarint(nil, m.Probe)
	b = binary.AppendVarint(b, m.Now)
	b = appendVector(b, m.Stable)
	b = appendBytes(b, []byte(m.Digest))
	b = appendVector(b, m.Whole)
	tailed := uint64(0)
	if m.Tailed {
		tailed = 1
	}
	return binary.AppendUvarint(b, tailed)
}

func decodeBeat(b []byte) (beat, error) {
	d := decoder{b: b}
	m := beat{Probe: d.int(), Now: d.int(), Stable: d.vector(), Digest: d.text(), Whole: d.vector(), Tailed: d.uint() == 1}
	return m, d.end()
}

// ack says what the follower has on disk: so many parts of this stream,
// everything up to a revision of the server, and what has changed in its vector
// since the last one. The first one says where to start.
type ack struct {
	Parts    uint64
	Revision int64
	Vector   crdt.Vector
}

func (m *ack) encode() []byte {
	b := binary.AppendUvarint(nil, m.Parts)
	return appendVector(binary.AppendVarint(b, m.Revision), m.Vector)
}

func decodeAck(b []byte) (ack, error) {
	d := decoder{b: b}
	m := ack{Parts: d.uint(), Revision: d.int(), Vector: d.vector()}
	return m, d.end()
}

// pull asks for announced records of the last message, by index.
type pull struct{ Want []int }

func (m *pull) encode() []byte {
	b := binary.AppendUvarint(nil, uint64(len(m.Want)))
	for _, i := range m.Want {
		b = binary.AppendUvarint(b, uint64(i))
	}
	return b
}

func decodePull(b []byte) (pull, error) {
	d := decoder{b: b}
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail("too many indices")
	}
	var m pull
	for range n {
		m.Want = append(m.Want, int(min(d.uint(), maxRecords)))
		if d.err != nil {
			break
		}
	}
	return m, d.end()
}

func encodeProbe(now int64) []byte { return binary.AppendVarint(nil, now) }

func decodeProbe(b []byte) (int64, error) {
	d := decoder{b: b}
	now := d.int()
	return now, d.end()
}
