package join

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/node/pki"
)

const (
	// Protocol is the ALPN protocol of the handshake.
	Protocol = "moot-join"
	// protocolVersion is the version of the messages. A reader ignores fields
	// it does not know; this number changes when that is not enough.
	protocolVersion = 1

	// HandshakeWithin bounds one handshake, from the first byte to the last.
	HandshakeWithin = 10 * time.Second

	maxRequestBytes = 16 << 10
	maxAnswerBytes  = 1 << 20
)

// Request is what a machine says of itself when it wants to become a member.
type Request struct {
	Protocol int            `json:"protocol"`
	Token    Secret         `json:"token"`             // id and secret, not the cluster's pin
	Name     string         `json:"name"`              // node name
	Machine  Secret         `json:"machine"`           // secret of the data directory; the register holds its hash
	Address  netip.AddrPort `json:"address"`           // where members are to reach it
	Version  string         `json:"version"`           // Moot's
	Time     time.Time      `json:"time"`              // its clock
	Cluster  string         `json:"cluster,omitempty"` // the cluster that its data directory belongs to already
}

// Grant is what makes a machine a member.
type Grant struct {
	Cluster  string           `json:"cluster"`
	Number   crdt.NodeNumber  `json:"number"`
	Material pki.Material     `json:"material"`
	Settings Settings         `json:"settings"`
	Peers    []netip.AddrPort `json:"peers"` // members to start from, the one that answered first
}

// LogValue keeps the keys out of logs.
func (g Grant) LogValue() slog.Value {
	return slog.GroupValue(slog.String("cluster", g.Cluster), slog.Int("number", int(g.Number)), slog.Int("peers", len(g.Peers)))
}

// Settings are those that all members must share.
type Settings struct {
	ClusterCIDR   Networks `json:"clusterCIDR"`
	ServiceCIDR   Networks `json:"serviceCIDR"`
	ClusterDomain string   `json:"clusterDomain"`
}

// answer is what a member replies: a grant or a refusal.
type answer struct {
	Protocol int       `json:"protocol"`
	Time     time.Time `json:"time"` // the member's clock
	Refusal  *Refusal  `json:"refusal,omitempty"`
	Grant    *Grant    `json:"grant,omitempty"`
}

// Secret is text that is kept out of logs and messages.
type Secret string

// Hash is what is kept of the secret where all members can read: how the register
// knows a machine by the secret of its data directory.
func (s Secret) Hash() string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// LogValue keeps the secret out of logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// String keeps the secret out of messages.
func (s Secret) String() string { return "(hidden)" }

// GoString keeps the secret out of messages.
func (s Secret) GoString() string { return s.String() }

// writeMessage sends v as JSON behind its length.
func writeMessage(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(data)), uint32(len(data))) //nolint:gosec // a few keys
	if _, err := w.Write(append(frame, data...)); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

var errTooLong = errors.New("message is too long")

// readMessage reads into v what writeMessage sent.
func readMessage(r io.Reader, limit int, v any) error {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > uint32(limit) { //nolint:gosec // a small constant
		return errTooLong
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}
