package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/backup"
	"github.com/mootkube/moot/node/join"
	"github.com/mootkube/moot/node/pki"
)

const (
	restoreBytes = 256 << 10 // of values in one transaction
	restoreKeys  = 128       // likewise
	restoreTries = 20        // at a key that others keep writing
)

// restoreReport counts what became of the keys of a backup.
type restoreReport struct {
	added, changed, same, skipped int
	dry                           bool
}

func (r *restoreReport) note(v backup.Verdict) {
	*map[backup.Verdict]*int{backup.Add: &r.added, backup.Change: &r.changed, backup.Same: &r.same, backup.Skip: &r.skipped}[v]++
}

func (r *restoreReport) String() string {
	verb := "put back"
	if r.dry {
		verb = "would put back"
	}
	return fmt.Sprintf("%s %d missing and %d different keys; %d are as they were; %d that tell of machines, are remade, were ending or are bound to others now were left alone",
		verb, r.added, r.changed, r.same, r.skipped)
}

// receiveBackup brings a backup into the living cluster, as new writes. It is
// kept aside until it has proved whole.
func receiveBackup(r *http.Request, on *Controls, say func(string)) error {
	spool, err := os.CreateTemp(on.SpoolDir, ".restore-")
	if err != nil {
		return fmt.Errorf("keep the backup aside: %w", err)
	}
	defer spool.Close()                             //nolint:errcheck // it is a copy
	if err := os.Remove(spool.Name()); err != nil { // it goes with its descriptor, however the daemon ends
		return fmt.Errorf("keep the backup aside: %w", err)
	}
	if _, err := io.Copy(spool, r.Body); err != nil {
		return fmt.Errorf("keep the backup aside: %w", err)
	}
	report := &restoreReport{dry: r.URL.Query().Get("dry-run") == "true"}
	if err := mergeBackup(r.Context(), on.Store, spool, report, say); err != nil {
		return fmt.Errorf("%w; until then: %s", err, report)
	}
	say(report.String())
	return nil
}

// mergeStore is the replica, as far as a restore needs it.
type mergeStore interface {
	Range(ctx context.Context, req store.RangeRequest) (store.RangeResult, error)
	Txn(ctx context.Context, t store.Txn) (store.TxnResult, error)
}

// mergeBackup puts what is missing or different, a key at a time and only if
// nothing else wrote it meanwhile. Nothing is removed.
func mergeBackup(ctx context.Context, s mergeStore, file io.ReadSeeker, report *restoreReport, say func(string)) error {
	others := map[string]string{} // identities of objects that were made anew, by those of then
	err := eachKey(file, func(key, came []byte) error {
		have, err := s.Range(ctx, store.RangeRequest{Key: key})
		if err != nil || len(have.KVs) == 0 {
			return err
		}
		if then, now := backup.UID(came), backup.UID(have.KVs[0].Value); then != "" && now != "" && then != now {
			others[then] = now
		}
		return nil
	})
	if err != nil {
		return err
	}
	told := time.Now()
	return eachKey(file, func(key, came []byte) error {
		if err := mergeKey(ctx, s, key, backup.WithOwners(came, others), report); err != nil {
			return err
		}
		if time.Since(told) > progressEvery {
			told = time.Now()
			say(report.String())
		}
		return nil
	})
}

// eachKey calls do for every key of a backup that has proved whole.
func eachKey(file io.ReadSeeker, do func(key, value []byte) error) error {
	in, err := verified(file)
	if err != nil {
		return err
	}
	defer in.Close()
	for {
		key, value, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := do(key, value); err != nil {
			return fmt.Errorf("restore %s: %w", key, err)
		}
	}
}

func mergeKey(ctx context.Context, s mergeStore, key, came []byte, report *restoreReport) error {
	for range restoreTries {
		have, err := s.Range(ctx, store.RangeRequest{Key: key})
		if err != nil {
			return err
		}
		var held []byte
		var mod int64
		if len(have.KVs) == 1 {
			held, mod = have.KVs[0].Value, have.KVs[0].ModRevision
		}
		value, verdict := backup.Place(string(key), came, held, string(uuid.NewUUID()))
		if report.dry || verdict == backup.Same || verdict == backup.Skip {
			report.note(verdict)
			return nil
		}
		done, err := s.Txn(ctx, store.Txn{
			If:   []store.Compare{{Key: key, Target: store.TargetMod, Relation: store.Equal, Int: mod}},
			Then: []store.Op{{Kind: store.OpPut, Key: key, Value: value}},
		})
		if err != nil {
			return err
		}
		if done.Succeeded {
			report.note(verdict)
			return nil
		}
	}
	return errors.New("other writes keep coming between")
}

// verified reads a backup to its end, and then returns it at its beginning.
func verified(file io.ReadSeeker) (*backup.Reader, error) {
	for _, check := range []bool{true, false} {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return nil, fmt.Errorf("read backup: %w", err)
		}
		if check {
			if _, err := backup.Verify(file); err != nil {
				return nil, err
			}
		}
	}
	return backup.NewReader(file)
}

// Restored is what [RestoreBackup] did.
type Restored struct {
	Summary backup.Summary
	Keys    int
}

// RestoreBackup makes a new cluster in the empty data directory of cfg from a
// backup: with its objects, its Kubernetes authorities and its service account
// key, so that kubeconfigs and tokens stay good, but with a new identity among
// members, so that what is left of the old cluster does not mix with it. No
// daemon may be running.
func RestoreBackup(ctx context.Context, cfg Config, path string, say func(string)) (Restored, error) {
	file, err := os.Open(path)
	if err != nil {
		return Restored{}, fmt.Errorf("open backup: %w", err)
	}
	defer file.Close() //nolint:errcheck // it was only read
	say("checking " + path)
	summary, err := backup.Verify(file)
	if err != nil {
		return Restored{}, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o711); err != nil {
		return Restored{}, fmt.Errorf("make directory: %w; run it with sudo, or choose another directory", err)
	}
	unlock, err := lockDir(cfg.DataDir)
	if err != nil {
		return Restored{}, err
	}
	defer unlock()
	if err := unused(cfg.DataDir); err != nil {
		return Restored{}, err
	}
	in, err := verified(file)
	if err != nil {
		return Restored{}, err
	}
	defer in.Close()
	pkiDir := filepath.Join(cfg.DataDir, "pki")
	if err := pki.BeginImport(pkiDir); err != nil { // from here on a start refuses the directory
		return Restored{}, err
	}
	keys, err := fillStore(ctx, cfg, in, say)
	if err != nil {
		return Restored{}, fmt.Errorf("%w; remove %s before the next try", err, cfg.DataDir)
	}
	settings := summary.Header.Settings
	if err := cfg.saveMembership(&membership{
		Name: cfg.NodeName, Number: firstNumber, ClusterCIDR: settings.ClusterCIDR, ServiceCIDR: settings.ServiceCIDR,
		ClusterDomain: settings.ClusterDomain, Complete: true,
	}); err != nil {
		return Restored{}, err
	}
	material := in.Material
	if material.Peers, err = pki.NewPeers(time.Now()); err != nil {
		return Restored{}, err
	}
	if err := pki.Import(pkiDir, material); err != nil { // and from here on it does not
		return Restored{}, err
	}
	return Restored{Summary: summary, Keys: keys}, nil
}

// unused makes sure that a directory holds nothing of a node.
func unused(dir string) error {
	for _, name := range []string{"store", "pki", "membership.json"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("restore into %s: it holds a node already; move it away first, or use --into-living to bring the backup into its running cluster", dir)
		}
	}
	return nil
}

// fillStore writes a backup into a new store, with this node as the only member.
func fillStore(ctx context.Context, cfg Config, in *backup.Reader, say func(string)) (keys int, err error) {
	machine, err := join.Machine(cfg.DataDir)
	if err != nil {
		return 0, err
	}
	db, err := store.Open(store.DefaultConfig(filepath.Join(cfg.DataDir, "store")))
	if err != nil {
		return 0, err
	}
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() { ran <- db.Run(runCtx) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ran, db.Close())
	}()
	if keys, err = copyKeys(ctx, db, in, say); err != nil {
		return keys, err
	}
	_, err = join.NewRegistry(db, time.Now).Settle(ctx, join.Self{
		Name: cfg.NodeName, Machine: machine, Number: firstNumber, Version: Version,
	}, true)
	return keys, err
}

func copyKeys(ctx context.Context, db *store.Store, in *backup.Reader, say func(string)) (int, error) {
	var batch store.Txn
	told, size, keys := time.Now(), 0, 0
	flush := func() error {
		if len(batch.Then) == 0 {
			return nil
		}
		if _, err := db.Txn(ctx, batch); err != nil {
			return fmt.Errorf("write store: %w", err)
		}
		keys += len(batch.Then)
		batch.Then, size = nil, 0
		if time.Since(told) > progressEvery {
			told = time.Now()
			say(fmt.Sprintf("wrote %d keys", keys))
		}
		return nil
	}
	for {
		key, came, err := in.Next()
		if errors.Is(err, io.EOF) {
			err = flush()
			return keys, err
		}
		if err != nil {
			return keys, err
		}
		value, verdict := backup.Place(string(key), came, nil, string(uuid.NewUUID()))
		if verdict == backup.Skip {
			continue // of the old cluster's machines
		}
		batch.Then = append(batch.Then, store.Op{Kind: store.OpPut, Key: key, Value: value})
		if size += len(key) + len(value); size >= restoreBytes || len(batch.Then) >= restoreKeys {
			if err := flush(); err != nil {
				return keys, err
			}
		}
	}
}
