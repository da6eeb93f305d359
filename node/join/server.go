package join

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mootkube/moot/node/pki"
)

// MaxClockSkew is how far a machine's clock may be from a member's. Conflicts
// are decided by clocks, so a machine that is hours off would win or lose all
// of them.
const MaxClockSkew = 5 * time.Minute

// Live is a member that takes part now.
type Live struct {
	Name    string
	Address netip.AddrPort // of the one port
}

// Config is what a [Server] needs to know. All fields are required.
type Config struct {
	Name     string // this member's
	Version  string // Moot's
	Cluster  string // the cluster's id
	Address  netip.AddrPort
	Settings Settings

	Tokens   *Tokens
	Registry *Registry
	Live     func() []Live                // the members that take part now, this one included or not
	Material func() (pki.Material, error) // the cluster's keys as they are now
	Admitted func(Registration)           // told of each new member before it gets its answer; may be nil

	Now func() time.Time
	Log *slog.Logger
}

// Validate says what is missing.
func (c *Config) Validate() error {
	switch {
	case c.Name == "" || c.Version == "" || c.Cluster == "":
		return errors.New("validate join config: no name, version or cluster")
	case !c.Address.IsValid() || !c.Settings.ClusterCIDR.IsValid() || !c.Settings.ServiceCIDR.IsValid() || c.Settings.ClusterDomain == "":
		return errors.New("validate join config: no address or cluster settings")
	case c.Tokens == nil || c.Registry == nil || c.Live == nil || c.Material == nil || c.Now == nil || c.Log == nil:
		return errors.New("validate join config: no tokens, register, members, material, clock or logger")
	}
	return nil
}

// Server answers machines that want to become members. Its methods may be
// called from many goroutines.
type Server struct {
	cfg     Config
	limiter *limiter
	quiet   *throttle
	slots   chan struct{}
}

const (
	maxHandshakes = 16          // at once; more are turned away
	drainWithin   = time.Second // for a machine that is turned away to hear so
)

// NewServer returns a server that starts nothing.
func NewServer(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, limiter: newLimiter(), quiet: &throttle{every: time.Second},
		slots: make(chan struct{}, maxHandshakes),
	}, nil
}

// Serve answers one machine and closes the connection, which is TLS with this
// member's certificate and has not been read from. It blocks for at most
// [HandshakeWithin]; it is made for [gossip.Config.Join].
func (s *Server) Serve(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // the answer has been sent, or there is nobody to tell
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), HandshakeWithin)
	defer cancel()
	if err := conn.SetDeadline(time.Now().Add(HandshakeWithin)); err != nil {
		return
	}
	source := conn.RemoteAddr().String()
	if err := s.serve(ctx, conn, source); err != nil {
		s.report("a machine did not join", "source", source, "err", err)
	}
}

func (s *Server) serve(ctx context.Context, conn net.Conn, source string) error {
	if !s.limiter.allow(host(source), s.cfg.Now()) {
		refusal := refuse(ReasonBusy, "too many attempts to join from this address; wait a few seconds")
		err := s.answer(conn, answer{Refusal: refusal})
		// Closing with its request unread could take the answer back.
		_ = conn.SetReadDeadline(time.Now().Add(drainWithin))
		_, _ = io.CopyN(io.Discard, conn, maxRequestBytes)
		return errors.Join(refusal, err)
	}
	var req Request
	if err := readMessage(conn, maxRequestBytes, &req); err != nil {
		if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" { // as crypto/tls reports the other side's
			return fmt.Errorf("the machine's token is not this cluster's, or from before its keys were rotated: %w", err)
		}
		return err
	}
	grant, refusal, err := s.decide(ctx, req)
	switch {
	case err != nil:
		s.report("a machine could not be let in", "source", source, "name", req.Name, "err", err)
		refusal = refuse(ReasonInternal, "member %s could not let this machine in; its log says why; try again, or another member", s.cfg.Name)
		return s.answer(conn, answer{Refusal: refusal})
	case refusal != nil:
		s.report("a machine was refused", "source", source, "name", req.Name, "address", req.Address, "reason", string(refusal.Reason), "text", refusal.Text)
		return s.answer(conn, answer{Refusal: refusal})
	}
	return s.answer(conn, answer{Grant: grant})
}

func (s *Server) answer(conn net.Conn, a answer) error {
	a.Protocol, a.Time = protocolVersion, s.cfg.Now().UTC()
	return writeMessage(conn, a)
}

// decide is the whole of the member's judgement. The token comes first: who has
// none learns nothing else.
func (s *Server) decide(ctx context.Context, req Request) (*Grant, *Refusal, error) {
	token, refusal, err := s.cfg.Tokens.check(ctx, req.Token)
	if err != nil || refusal != nil {
		return nil, refusal, err
	}
	if refusal := s.judge(req); refusal != nil {
		return nil, refusal, nil
	}
	reg, refusal, err := s.cfg.Registry.admit(ctx, req, s.cfg.Live(), s.cfg.Name)
	if err != nil || refusal != nil {
		return nil, refusal, err
	}
	// It is a member before the keys are read: a rotation waits for whom it gave
	// keys to.
	material, err := s.cfg.Material()
	if err != nil {
		return nil, nil, err
	}
	if err := s.cfg.Tokens.used(ctx, token.ID); err != nil {
		return nil, nil, err
	}
	if s.cfg.Admitted != nil {
		s.cfg.Admitted(reg)
	}
	s.cfg.Log.Info("a machine became a member", "name", reg.Name, "number", reg.Number, "address", reg.Address, "token", token.ID)
	return &Grant{
		Cluster: s.cfg.Cluster, Number: reg.Number, Material: material, Settings: s.cfg.Settings, Peers: s.peers(req.Name),
	}, nil, nil
}

// judge looks at the request alone.
func (s *Server) judge(req Request) *Refusal {
	now := s.cfg.Now()
	skew := req.Time.Sub(now)
	problems := validation.IsDNS1123Subdomain(req.Name)
	switch {
	case req.Protocol != protocolVersion:
		return refuse(ReasonProtocol, "the machine speaks version %d of the handshake and member %s version %d; run the same version of moot on both", req.Protocol, s.cfg.Name, protocolVersion)
	case major(req.Version) != major(s.cfg.Version):
		return refuse(ReasonVersion, "the machine runs moot %.40s and the cluster %s; they cannot work together, run the same on both", req.Version, s.cfg.Version)
	case skew.Abs() > MaxClockSkew:
		return clockRefusal(req.Time, now, s.cfg.Name)
	case req.Cluster != "" && req.Cluster != s.cfg.Cluster:
		return refuse(ReasonCluster, "the machine's data directory belongs to the cluster %.40s, this is %s; give it an empty --data-dir, or remove the old one", req.Cluster, s.cfg.Cluster)
	case len(problems) > 0:
		return refuse(ReasonName, "%.80q cannot be a node's name: %s", req.Name, problems[0])
	case !req.Address.IsValid() || req.Address.Port() == 0 || !req.Address.Addr().IsGlobalUnicast():
		return refuse(ReasonAddress, "%s is no address that members could reach; give --node-ip", req.Address)
	case len(req.Machine) < 2*secretBytes || len(req.Machine) > 256:
		return refuse(ReasonProtocol, "the machine sent no identity of its data directory")
	}
	return nil
}

func clockRefusal(machine, member time.Time, name string) *Refusal {
	skew := machine.Sub(member)
	relation := "ahead of"
	if skew < 0 {
		relation = "behind"
	}
	return refuse(ReasonClock, "the machine's clock says %s and that of member %s says %s: %s %s it, more than %s; set the clocks",
		machine.UTC().Format(time.DateTime), name, member.UTC().Format(time.DateTime), skew.Abs().Round(time.Second), relation, MaxClockSkew)
}

// peers lists where the new member finds others, this one first.
func (s *Server) peers(name string) []netip.AddrPort {
	addrs := []netip.AddrPort{s.cfg.Address}
	for _, m := range s.cfg.Live() {
		if m.Name != name && m.Name != s.cfg.Name && len(addrs) < maxPeers {
			addrs = append(addrs, m.Address)
		}
	}
	return addrs
}

const maxPeers = 64 // addresses in a grant

// report logs at most one line a second: a stranger must not fill the disk.
func (s *Server) report(text string, args ...any) {
	if skipped, ok := s.quiet.allow(s.cfg.Now()); ok {
		if skipped > 0 {
			args = append(args, "skipped", skipped)
		}
		s.cfg.Log.Warn(text, args...)
	}
}

// major is the part of a version that must be equal: before 1.0 that is the
// first two numbers.
func major(version string) string {
	first, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	if first == "0" {
		second, _, _ := strings.Cut(rest, ".")
		return first + "." + second
	}
	return first
}

func host(source string) string {
	if ap, err := netip.ParseAddrPort(source); err == nil {
		return ap.Addr().Unmap().String()
	}
	return fmt.Sprintf("%.80s", source)
}
