package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/node/pki"
)

// Config is what the API server is told. Start from [DefaultConfig].
type Config struct {
	Log *slog.Logger

	EtcdSocket    string         // unix socket of the etcd API it stores in
	NodeIP        netip.Addr     // address it is reached at by other machines
	Port          int            // TCP port, on all addresses of the node
	ServiceCIDRs  []netip.Prefix // Service addresses, one network or one of each family
	BothFamilies  bool           // the node has addresses of both
	ClusterDomain string         // DNS domain of the cluster
	PKI           *pki.Bundle    // certificates and keys

	// Pods stay this long on a node that is gone or not ready, unless they
	// say otherwise themselves.
	Toleration time.Duration

	// Args are the user's arguments, "flag=value" or "flag", for upstream's
	// own flags.
	Args []string

	// Revision is the newest revision of this node's history. Resource versions
	// that belong to another history are told by it. Without it all of them are
	// taken for this node's own.
	Revision func() int64

	// Cluster tells this cluster from all others, for good, and is the same on
	// all its nodes. What every API server makes by itself gets its UID from it;
	// without it, each node makes its own.
	Cluster string

	// Past returns what is remembered of deleted objects at a key that holds
	// nothing: bytes that are the same on nodes that know of the same deletes,
	// and nil when nothing is remembered. An object that is made again gets
	// another UID by it.
	Past func(key string) []byte

	// CatchUp, when there is one, blocks until this node has all that another
	// had at a revision of its own, or until that is not to be expected. Reads
	// that ask for a state not older than that wait for it, for a few seconds.
	CatchUp func(context.Context, crdt.Revision)

	// Leads reports whether this node leads; it must not block. The API server's
	// controllers make the writes that one node makes for all only then. Without
	// it they always do.
	Leads func() bool

	// Filter, when there is one, sees each request before all else does.
	Filter func(http.Handler) http.Handler
}

// DefaultConfig returns the settings that do not depend on the node.
func DefaultConfig() Config {
	return Config{
		Log:           slog.New(slog.DiscardHandler),
		Port:          6443,
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		ClusterDomain: "cluster.local",
		Toleration:    5 * time.Second,
	}
}

// Validate says what is wrong, all of it at once.
func (c *Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Log == nil {
		add("no logger")
	}
	if !filepath.IsAbs(c.EtcdSocket) {
		add("etcd socket %q: must be an absolute path", c.EtcdSocket)
	}
	if !c.NodeIP.IsValid() || c.NodeIP.IsUnspecified() {
		add("node address %s: must be an address of this machine", c.NodeIP)
	}
	if c.Port < 1 || c.Port > 65535 {
		add("port %d: must be between 1 and 65535", c.Port)
	}
	if len(c.ServiceCIDRs) == 0 {
		add("service network: missing")
	}
	if c.ClusterDomain == "" {
		add("cluster domain: missing")
	}
	if c.PKI == nil {
		add("keys and certificates: missing")
	}
	if c.Toleration < 0 {
		add("toleration %s: must not be negative", c.Toleration)
	}
	return errors.Join(errs...)
}

// issuer is the name in service account tokens. It is the same on every node,
// so that each API server accepts the others' tokens.
func (c *Config) issuer() string { return "https://kubernetes.default.svc." + c.ClusterDomain }
