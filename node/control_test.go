package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/backup"
	"github.com/mootkube/moot/node/join"
	"github.com/mootkube/moot/node/pki"
	"github.com/mootkube/moot/node/pki/rotation"
)

// daemon is a control socket over a real store and real keys.
type daemon struct {
	Client
	t        *testing.T
	db       *store.Store
	controls *Controls
	control  *control
}

type leaver struct{ err error }

func (l leaver) Leave(_ context.Context, say func(string)) error { say("handing over"); return l.err }

func (l leaver) Remove(_ context.Context, name string, say func(string)) error {
	say("removing " + name)
	return l.err
}

func runStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	db, err := store.Open(store.DefaultConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, db.Close()); err != nil {
			t.Error(err)
		}
	})
	return db
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	dir := t.TempDir()
	params := pki.Params{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		ServiceIP: netip.MustParseAddr("10.43.0.1"), ClusterDomain: "cluster.local", APIPort: 6443,
	}
	keys, err := pki.Ensure(filepath.Join(dir, "pki"), params, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	identity, err := keys.PeerIdentity()
	if err != nil {
		t.Fatal(err)
	}
	db := runStore(t, filepath.Join(dir, "store"))
	runner, err := rotation.New(rotation.Config{
		Name: "n1", Machine: "machine", Dir: filepath.Join(dir, "pki"), Store: db,
		Members: func(context.Context) (map[string]string, error) { return map[string]string{"n1": "machine"}, nil },
		Leads:   func() bool { return true }, Taken: func() error { return nil },
		Now: time.Now, Log: slog.New(slog.DiscardHandler), Every: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{Client: Client{Socket: filepath.Join(dir, "moot.sock")}, t: t, db: db, control: &control{}}
	d.controls = &Controls{
		Cluster: leaver{}, Store: db, Tokens: join.NewTokens(db, time.Now), Rotation: runner, Pin: identity.Pin,
		Address: netip.MustParseAddrPort("192.0.2.1:7443"), ID: keys.Cluster, Node: "n1", PKIDir: filepath.Join(dir, "pki"), SpoolDir: dir,
		Settings: join.Settings{
			ClusterCIDR: join.Networks{First: netip.MustParsePrefix("10.44.0.0/16")}, ServiceCIDR: join.Networks{First: netip.MustParsePrefix("10.43.0.0/16")}, ClusterDomain: "cluster.local",
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- serveStatus(ctx, d.Socket, func() Status { return Status{Node: "n1"} }, d.control, func() { close(ready) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return d
}

func put(t *testing.T, db *store.Store, key, value string) {
	t.Helper()
	if _, err := db.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: []byte(key), Value: []byte(value)}}}); err != nil {
		t.Fatal(err)
	}
}

// content is all that a backup would hold of a store, but what is Moot's own.
func content(t *testing.T, db *store.Store) map[string]string {
	t.Helper()
	result, err := db.Range(t.Context(), store.RangeRequest{Key: []byte{0}, End: []byte{0}})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range result.KVs {
		if store.Kept(kv.Key) && !strings.HasPrefix(string(kv.Key), memberPrefix) {
			all[string(kv.Key)] = string(kv.Value)
		}
	}
	return all
}

func wantContent(t *testing.T, db *store.Store, want map[string]string) {
	t.Helper()
	got := content(t, db)
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s is %.80q, want %.80q", key, got[key], value)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s should not be there", key)
		}
	}
}

func object(kind, name, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":%q,"metadata":{"name":%q,"uid":"uid-%s"},"spec":%q}`, kind, name, name, spec)
}

func TestControlTokens(t *testing.T) {
	d := newDaemon(t)
	if _, err := d.Tokens(t.Context()); err == nil || !strings.Contains(err.Error(), "starting") {
		t.Errorf("before the parts are there: %v", err)
	}
	d.control.open(d.controls)
	made, err := d.CreateToken(t.Context(), NewToken{TTL: time.Hour, Description: "for n2"})
	if err != nil {
		t.Fatal(err)
	}
	token, err := join.ParseToken(made.Token)
	if err != nil || token.ID != made.ID || made.Address != "192.0.2.1:7443" {
		t.Errorf("made %+v: %v", made.TokenInfo, err)
	}
	list, err := d.Tokens(t.Context())
	if err != nil || len(list) != 1 || list[0].Description != "for n2" || list[0].Rotated {
		t.Errorf("tokens %+v: %v", list, err)
	}
	if err := d.RevokeToken(t.Context(), made.ID); err != nil {
		t.Error(err)
	}
	if err := d.RevokeToken(t.Context(), made.ID); err == nil || !strings.Contains(err.Error(), "no such token") {
		t.Errorf("revoke again: %v", err)
	}
	if _, err := d.CreateToken(t.Context(), NewToken{TTL: -time.Hour}); err == nil {
		t.Error("a token that has expired already")
	}
	d.control.open(nil)
	if _, err := d.Tokens(t.Context()); err == nil {
		t.Error("answers while the daemon stops")
	}
}

func TestControlFollows(t *testing.T) {
	d := newDaemon(t)
	d.control.open(d.controls)
	var said []string
	say := func(text string) { said = append(said, text) }
	if err := d.Leave(t.Context(), say); err != nil {
		t.Error(err)
	}
	d.controls.Cluster = leaver{errors.New("it lives")}
	if err := d.Remove(t.Context(), "n3", say); err == nil || err.Error() != "it lives" {
		t.Errorf("error %v", err)
	}
	if got := strings.Join(said, "; "); got != "handing over; removing n3" {
		t.Errorf("said %q", got)
	}
	s, err := d.RotateKeys(t.Context())
	if err != nil || s.Stage != rotation.StageTrust {
		t.Errorf("rotation %+v: %v", s, err)
	}
	if _, err := d.RotateKeys(t.Context()); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("another rotation: %v", err)
	}
	status, err := FetchStatus(t.Context(), d.Socket)
	if err != nil || status.Rotation == nil || status.Rotation.ID != s.ID {
		t.Errorf("status %+v: %v", status.Rotation, err)
	}
	if list, err := d.Conflicts(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("conflicts %v: %v", list, err)
	}
	if _, err := (Client{Socket: d.Socket + ".none"}).Tokens(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
}

func TestStatusCountsTheConflictsThatAreListed(t *testing.T) {
	d := newDaemon(t)
	d.control.open(d.controls)
	put(t, d.db, store.ConflictPrefix+"1", `{"key":"/registry/configmaps/d/c","path":".data[\"a\"]"}`)
	put(t, d.db, store.ConflictPrefix+"2", `{"key":"/registry/pods/d/p","path":".status.phase"}`)
	if list, err := d.Conflicts(t.Context()); err != nil || len(list) != 2 || list[0].Observed == list[1].Observed {
		t.Fatalf("conflicts %+v: %v", list, err)
	}
	if status, err := FetchStatus(t.Context(), d.Socket); err != nil || status.Conflicts != 1 {
		t.Errorf("%d conflicts: %v", status.Conflicts, err)
	}
}

// fill writes some of everything, more than a page of it.
func fill(t *testing.T, db *store.Store) map[string]string {
	t.Helper()
	want := map[string]string{}
	for i := range backupPage + 10 {
		key := fmt.Sprintf("/registry/configmaps/default/c%03d", i)
		want[key] = object("ConfigMap", fmt.Sprintf("c%03d", i), strings.Repeat("x", i))
		put(t, db, key, want[key])
	}
	put(t, db, "/registry/events/default/e1", object("Event", "e1", "gone at a restart"))
	put(t, db, "/registry/ranges/serviceips", object("RangeAllocation", "", "this node's alone"))
	return want
}

func TestBackupGetsItsNameWithoutLinks(t *testing.T) {
	dir := t.TempDir()
	temp, name := filepath.Join(dir, "temp"), filepath.Join(dir, "name")
	noLinks := func(path, name string) error {
		return &os.LinkError{Op: "link", Old: path, New: name, Err: syscall.EPERM} // as Linux says on FAT
	}
	for _, text := range []string{"first", "second"} {
		if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := giveName(temp, name, noLinks); text == "first" && err != nil || text == "second" && !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "first" {
		t.Errorf("it holds %q, %v", got, err)
	}
}

func TestBackupAndRestore(t *testing.T) {
	d := newDaemon(t)
	d.control.open(d.controls)
	want := fill(t, d.db)
	token, err := d.CreateToken(t.Context(), NewToken{TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "backup")
	summary, err := d.Backup(t.Context(), path, func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	if summary.Header.Cluster != d.controls.ID || summary.Header.Settings != d.controls.Settings || summary.Header.Revision == 0 {
		t.Errorf("header %+v", summary.Header)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: %v", info.Mode(), err)
	}
	if _, err := d.Backup(t.Context(), path, func(int64) {}); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("over an existing file: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside the backup: %v, %v", entries, err)
	}

	cfg := DefaultConfig()
	cfg.DataDir, cfg.NodeName = filepath.Join(t.TempDir(), "moot"), "m1"
	say := func(string) {}
	restored, err := RestoreBackup(t.Context(), cfg, path, say)
	if err != nil {
		t.Fatal(err)
	}
	if restored.Keys != len(want) {
		t.Errorf("restored %d keys, want %d", restored.Keys, len(want))
	}
	db := runStore(t, cfg.storeDir())
	wantContent(t, db, want)
	if db.Origin() == d.db.Origin() {
		t.Error("the restored store has the old one's incarnation")
	}
	members, err := join.NewRegistry(db, time.Now).List(t.Context())
	if err != nil || len(members) != 1 || members[0].Name != "m1" {
		t.Errorf("members %+v: %v", members, err)
	}
	if tokens, err := join.NewTokens(db, time.Now).List(t.Context()); err != nil || len(tokens) != 0 {
		t.Errorf("the old cluster's token %s is good here: %v", token.ID, err)
	}
	old, err := pki.Export(d.controls.PKIDir)
	if err != nil {
		t.Fatal(err)
	}
	now, err := pki.Export(cfg.pkiDir())
	if err != nil {
		t.Fatal(err)
	}
	if string(old.CAKey) != string(now.CAKey) || string(old.ServiceAccountKey) != string(now.ServiceAccountKey) {
		t.Error("kubeconfigs and tokens of the old cluster do not work any more")
	}
	if old.ClusterID() == now.ClusterID() {
		t.Error("members of the old cluster would mix with it")
	}
	m, err := cfg.loadMembership()
	if err != nil || m == nil || !m.Complete || m.ClusterCIDR != d.controls.Settings.ClusterCIDR || m.Name != "m1" {
		t.Errorf("membership %+v: %v", m, err)
	}
	if _, err := RestoreBackup(t.Context(), cfg, path, say); err == nil || !strings.Contains(err.Error(), "holds a node already") {
		t.Errorf("into the same directory: %v", err)
	}
}

func TestRestoredObjectsHaveTheOwnersOfNow(t *testing.T) {
	d := newDaemon(t)
	d.control.open(d.controls)
	const owner, owned = "/registry/apps/d/a", "/registry/secrets/d/s"
	made := func(uid, of string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","metadata":{"ownerReferences":[{"uid":%q}],"uid":%q}}`, of, uid)
	}
	put(t, d.db, owner, made("old", "x"))
	put(t, d.db, owned, made("s", "old"))
	path := filepath.Join(t.TempDir(), "backup")
	if _, err := d.Backup(t.Context(), path, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	put(t, d.db, owner, made("new", "x"))
	if _, err := d.db.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: []byte(owned)}}}); err != nil {
		t.Fatal(err)
	}
	if err := d.Restore(t.Context(), path, false, func(string) {}); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{owner: made("new", "x"), owned: made("s", "new")} {
		found, err := d.db.Range(t.Context(), store.RangeRequest{Key: []byte(key)})
		if err != nil || len(found.KVs) != 1 || string(found.KVs[0].Value) != want {
			t.Errorf("%s: %+v, want %s: %v", key, found.KVs, want, err)
		}
	}
}

func TestRestoreIntoLiving(t *testing.T) {
	d := newDaemon(t)
	d.control.open(d.controls)
	want := fill(t, d.db)
	owned := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","ownerReferences":[{"controller":true}]}}`
	put(t, d.db, "/registry/pods/default/owned", owned)
	put(t, d.db, "/registry/pods/default/bare", object("Pod", "bare", ""))
	put(t, d.db, "/registry/minions/n9", object("Node", "n9", ""))
	path := filepath.Join(t.TempDir(), "backup")
	if _, err := d.Backup(t.Context(), path, func(int64) {}); err != nil {
		t.Fatal(err)
	}

	// Time passes: something changes, something goes, something comes.
	put(t, d.db, "/registry/configmaps/default/c001", object("ConfigMap", "c001", "changed"))
	for _, key := range []string{"/registry/configmaps/default/c002", "/registry/pods/default/owned", "/registry/pods/default/bare", "/registry/minions/n9"} {
		if _, err := d.db.Txn(t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: []byte(key)}}}); err != nil {
			t.Fatal(err)
		}
	}
	put(t, d.db, "/registry/configmaps/default/new", object("ConfigMap", "new", ""))
	later := content(t, d.db)

	var said string
	say := func(text string) { said = text }
	if err := d.Restore(t.Context(), path, true, say); err != nil {
		t.Fatal(err)
	}
	wantContent(t, d.db, later)
	if want := "would put back 2 missing and 1 different keys"; !strings.Contains(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
	if err := d.Restore(t.Context(), path, false, say); err != nil {
		t.Fatal(err)
	}
	want["/registry/configmaps/default/new"] = object("ConfigMap", "new", "")
	bare := content(t, d.db)["/registry/pods/default/bare"]
	if !strings.Contains(bare, `"name":"bare"`) || strings.Contains(bare, "uid-bare") {
		t.Errorf("a pod that is gone came back as %s", bare)
	}
	want["/registry/pods/default/bare"] = bare
	wantContent(t, d.db, want)
	if want := "put back 2 missing and 1 different keys"; !strings.HasPrefix(said, want) || !strings.Contains(said, "2 that tell of machines") {
		t.Errorf("said %q, want %q", said, want)
	}
}

// What is not a whole backup changes nothing, anywhere.
func TestRestoreRefuses(t *testing.T) {
	d := newDaemon(t)
	d.control.open(d.controls)
	fill(t, d.db)
	dir := t.TempDir()
	path := filepath.Join(dir, "backup")
	if _, err := d.Backup(t.Context(), path, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, d.db, "/registry/configmaps/default/c001", object("ConfigMap", "c001", "changed"))
	before := content(t, d.db)
	spoiled := append([]byte(nil), data...)
	spoiled[len(data)/2] ^= 1
	for name, data := range map[string][]byte{"cut": data[:len(data)-5], "changed": spoiled, "other": []byte("apiVersion: v1\n")} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := DefaultConfig()
		cfg.DataDir, cfg.NodeName = filepath.Join(dir, name+"-data"), "m1"
		if _, err := RestoreBackup(t.Context(), cfg, path, func(string) {}); !errors.Is(err, backup.ErrDamaged) && !errors.Is(err, backup.ErrNotABackup) {
			t.Errorf("%s: offline: %v", name, err)
		}
		if _, err := os.Stat(cfg.DataDir); err == nil {
			t.Errorf("%s: something was written", name)
		}
		if err := d.Restore(t.Context(), path, false, func(string) {}); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%s: into the living: %v", name, err)
		}
	}
	wantContent(t, d.db, before)
	if entries, err := filepath.Glob(filepath.Join(d.controls.SpoolDir, ".restore-*")); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A backup that breaks on its way says why and leaves no file.
func TestBackupThatBreaks(t *testing.T) {
	d := newDaemon(t)
	fill(t, d.db)
	d.controls.Store = breaking{d.db}
	d.control.open(d.controls)
	path := filepath.Join(t.TempDir(), "backup")
	if _, err := d.Backup(t.Context(), path, func(int64) {}); err == nil || !strings.Contains(err.Error(), "longer than history is kept") {
		t.Errorf("error %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// breaking has its history compacted after the first page.
type breaking struct{ *store.Store }

func (b breaking) Range(ctx context.Context, req store.RangeRequest) (store.RangeResult, error) {
	if req.Revision > 0 && len(req.Key) > 1 {
		return store.RangeResult{}, store.ErrCompacted
	}
	return b.Store.Range(ctx, req)
}

// A restore that is cut short leaves a directory that no daemon starts from.
func TestInterruptedRestore(t *testing.T) {
	d := newDaemon(t)
	d.control.open(d.controls)
	fill(t, d.db)
	path := filepath.Join(t.TempDir(), "backup")
	if _, err := d.Backup(t.Context(), path, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.DataDir, cfg.NodeName = filepath.Join(t.TempDir(), "moot"), "m1"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := RestoreBackup(ctx, cfg, path, func(string) {}); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	cfg.NodeIP = netip.MustParseAddr("192.0.2.1")
	if _, err := pki.Ensure(cfg.pkiDir(), (&Node{cfg: cfg}).pkiParams(), time.Now()); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("a daemon would start from a part of a backup: %v", err)
	}
	if _, err := RestoreBackup(t.Context(), cfg, path, func(string) {}); err == nil {
		t.Error("restored over a part of a backup")
	}
}
