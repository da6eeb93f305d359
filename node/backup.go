package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/backup"
	"github.com/mootkube/moot/node/pki"
)

const (
	backupPage    = 256 // keys read at once
	progressEvery = 2 * time.Second
	backupTrailer = "Moot-Error" // HTTP trailer: why a backup was cut short
	memberPrefix  = "/moot/"     // keys of Moot's own: members, tokens, conflicts
)

// backupStore is the replica, as far as a backup needs it.
type backupStore interface {
	Range(ctx context.Context, req store.RangeRequest) (store.RangeResult, error)
	Revision() int64
}

// writeBackup writes all replicated durable keys as they are at one revision.
func writeBackup(ctx context.Context, w io.Writer, s backupStore, h backup.Header, m pki.Material) error {
	h.Revision = s.Revision()
	out, err := backup.NewWriter(w, h, m)
	if err != nil {
		return err
	}
	for next := []byte{0}; ; {
		page, err := s.Range(ctx, store.RangeRequest{Key: next, End: []byte{0}, Revision: h.Revision, Limit: backupPage})
		if errors.Is(err, store.ErrCompacted) {
			return fmt.Errorf("read the store: %w: writing took longer than history is kept; write to a faster disk", err)
		}
		if err != nil {
			return fmt.Errorf("read the store: %w", err)
		}
		for _, kv := range page.KVs {
			if !store.Kept(kv.Key) {
				continue
			}
			if err := out.Put(kv.Key, kv.Value); err != nil {
				return err
			}
		}
		if !page.More || len(page.KVs) == 0 {
			return out.Close()
		}
		next = append(page.KVs[len(page.KVs)-1].Key, 0)
	}
}

// sendBackup streams a backup; what goes wrong on the way is told in a trailer.
func (c *control) sendBackup(w http.ResponseWriter, r *http.Request) {
	on, err := c.controls()
	var material pki.Material
	if err == nil {
		material, err = pki.Export(on.PKIDir)
	}
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", backupTrailer)
	header := backup.Header{
		Cluster: on.ID, Node: on.Node, Version: Version, Created: time.Now().UTC().Truncate(time.Second), Settings: on.Settings,
	}
	if err := writeBackup(r.Context(), w, on.Store, header, material); err != nil {
		w.Header().Set(backupTrailer, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}
