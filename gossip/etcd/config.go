package etcd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// Config is what a [Server] needs to know. Start from [DefaultConfig].
type Config struct {
	// Socket is the path of the unix socket to serve on. Its directory must
	// exist. A socket left behind by a dead process is replaced; one that
	// answers is an error.
	Socket string
	// Listener, if set, is served instead of Socket. The server closes it.
	Listener net.Listener
	// Store answers the requests. The caller runs and closes it; it must outlive Run.
	Store Store
	// Log receives what an operator should know.
	Log *slog.Logger

	// Name, ClusterID and MemberID are what Status, MemberList and response
	// headers show. The IDs must not be zero.
	Name                string
	ClusterID, MemberID uint64

	// MaxRequestBytes bounds a request's keys and values.
	MaxRequestBytes int
	// MaxTxnOps bounds the compares and the operations of each branch of a transaction.
	MaxTxnOps int
	// MaxConnections bounds the connections served at a time.
	MaxConnections int
	// MaxStreams bounds the requests and watch streams open on one connection.
	MaxStreams uint32
	// MaxWatches bounds the watches open on one watch stream.
	MaxWatches int
	// ProgressInterval is how often a watch created with progress_notify that
	// had no event is told the current revision.
	ProgressInterval time.Duration
	// KeepAliveMinTime is how often a client may ping; one that pings more
	// often is disconnected.
	KeepAliveMinTime time.Duration
	// StopTimeout bounds how long requests under way may take to finish once
	// Run's context ends.
	StopTimeout time.Duration
}

// DefaultConfig returns etcd's own limits where etcd has one.
func DefaultConfig() Config {
	return Config{
		Name:             "moot",
		ClusterID:        1,
		MemberID:         1,
		MaxRequestBytes:  3 << 19, // 1.5 MiB
		MaxTxnOps:        128,
		MaxConnections:   4096,
		MaxStreams:       10_000,
		MaxWatches:       10_000,
		ProgressInterval: time.Minute,
		KeepAliveMinTime: 5 * time.Second,
		StopTimeout:      5 * time.Second,
	}
}

// Validate reports the first thing wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Socket == "" && c.Listener == nil:
		return errors.New("validate etcd config: neither Socket nor Listener is set")
	case c.Socket != "" && c.Listener != nil:
		return errors.New("validate etcd config: both Socket and Listener are set")
	case len(c.Socket) > maxSocketPath:
		return fmt.Errorf("validate etcd config: socket path %q is longer than the %d bytes the kernel takes; use a shorter directory", c.Socket, maxSocketPath)
	case c.Store == nil:
		return errors.New("validate etcd config: Store is not set")
	case c.Log == nil:
		return errors.New("validate etcd config: Log is not set")
	case c.ClusterID == 0 || c.MemberID == 0:
		return errors.New("validate etcd config: ClusterID and MemberID must not be zero")
	case c.MaxRequestBytes <= 0 || c.MaxTxnOps <= 0 || c.MaxConnections <= 0 || c.MaxStreams == 0 || c.MaxWatches <= 0:
		return errors.New("validate etcd config: every limit must be positive")
	case c.ProgressInterval <= 0 || c.KeepAliveMinTime <= 0 || c.StopTimeout <= 0:
		return errors.New("validate etcd config: every duration must be positive")
	}
	return nil
}
