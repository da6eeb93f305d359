package rotation

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/pki"
)

const (
	recordKey   = "/moot/keys/rotation"
	takenPrefix = "/moot/keys/taken/"
)

// record is the replicated state of a rotation. Stage only ever goes forward.
type record struct {
	ID      string    `json:"id"`
	Stage   Stage     `json:"stage"`
	Started time.Time `json:"started"`
	By      string    `json:"by"`
	Sealed  []byte    `json:"sealed,omitempty"` // pki.Stages, encrypted; gone once done
}

// taken is a member's word that it works with the keys of a stage. It is the word
// of the machine that has the name, not of one that had it before.
type taken struct {
	ID      string `json:"id"`
	Stage   Stage  `json:"stage"`
	Machine string `json:"machine"`
}

// order ranks the stages.
func (s Stage) order() int {
	return slices.Index([]Stage{StageTrust, StageIssue, StageDrop, StageDone}, s)
}

func (s Stage) next() Stage {
	switch s {
	case StageTrust:
		return StageIssue
	case StageIssue:
		return StageDrop
	default:
		return StageDone
	}
}

// Runner takes this member through rotations. Its methods may be called from
// many goroutines.
type Runner struct {
	cfg  Config
	done taken // what this process has put to use
}

// New returns a runner that starts nothing.
func New(cfg Config) (*Runner, error) {
	switch {
	case cfg.Name == "" || cfg.Machine == "" || cfg.Dir == "":
		return nil, errors.New("validate rotation config: no name, machine or directory")
	case cfg.Store == nil || cfg.Members == nil || cfg.Leads == nil || cfg.Taken == nil || cfg.Now == nil || cfg.Log == nil:
		return nil, errors.New("validate rotation config: no store, members, leader, hook, clock or logger")
	case cfg.Every <= 0:
		return nil, errors.New("validate rotation config: no interval")
	}
	return &Runner{cfg: cfg}, nil
}

// Run takes part in rotations until ctx ends. What fails is logged and tried
// again.
func (r *Runner) Run(ctx context.Context) error {
	tick := time.NewTicker(r.cfg.Every)
	defer tick.Stop()
	var last string
	for {
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			if text := err.Error(); text != last { // once, not every interval
				r.cfg.Log.Warn("keys could not be rotated further, trying again", "err", err)
				last = text
			}
		} else {
			last = ""
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// step does what can be done now: take the stage, and as the leader write the
// next one once all have taken this.
func (r *Runner) step(ctx context.Context) error {
	rec, mod, err := r.read(ctx)
	if err != nil || rec == nil || rec.Stage == StageDone {
		return err
	}
	if err := r.take(ctx, rec); err != nil {
		return err
	}
	if !r.cfg.Leads() {
		return nil
	}
	waiting, err := r.waiting(ctx, rec)
	if err != nil || len(waiting) > 0 {
		return err
	}
	next := *rec
	if next.Stage = rec.Stage.next(); next.Stage == StageDone {
		next.Sealed = nil
	}
	moved, err := r.write(ctx, next, mod)
	if err != nil || !moved {
		return err
	}
	r.cfg.Log.Info("rotation of members' keys moved on", "rotation", next.ID, "stage", string(next.Stage))
	return nil
}

// take puts the stage's keys to use here, once, and says so.
func (r *Runner) take(ctx context.Context, rec *record) error {
	mine := taken{ID: rec.ID, Stage: rec.Stage, Machine: r.cfg.Machine}
	if r.done != mine {
		stages, err := r.unseal(rec.Sealed)
		if err != nil {
			return fmt.Errorf("take keys of stage %s: %w", rec.Stage, err)
		}
		if err := r.adopt(stages, rec.Stage); err != nil {
			return fmt.Errorf("take keys of stage %s: %w", rec.Stage, err)
		}
		if err := r.cfg.Taken(); err != nil {
			return fmt.Errorf("use keys of stage %s: %w", rec.Stage, err)
		}
		r.done = mine
	}
	key := []byte(takenPrefix + r.cfg.Name)
	value, err := json.Marshal(mine)
	if err != nil {
		return fmt.Errorf("encode stage: %w", err)
	}
	result, err := r.cfg.Store.Range(ctx, store.RangeRequest{Key: key})
	if err != nil {
		return fmt.Errorf("read own stage: %w", err)
	}
	if len(result.KVs) == 1 && string(result.KVs[0].Value) == string(value) {
		return nil
	}
	if _, err := r.cfg.Store.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: key, Value: value}}}); err != nil {
		return fmt.Errorf("write own stage: %w", err)
	}
	r.cfg.Log.Info("took members' keys", "rotation", rec.ID, "stage", string(rec.Stage))
	return nil
}

// adopt writes the keys of a stage, unless those here are further already: a
// joiner's replica may come from a member that is behind the one that gave it
// its keys. To go back would lock it out, as the others move on without it
// until they know of it.
func (r *Runner) adopt(stages pki.Stages, stage Stage) error {
	reached, err := stages.Reached(r.cfg.Dir)
	if err != nil || reached > stage.order()+1 {
		return err
	}
	data := map[Stage][]byte{StageTrust: stages.Trust, StageIssue: stages.Issue, StageDrop: stages.Drop}[stage]
	return pki.AdoptPeers(r.cfg.Dir, data, r.cfg.Name, r.cfg.Now())
}

// waiting names the members that have not taken the record's stage.
func (r *Runner) waiting(ctx context.Context, rec *record) ([]string, error) {
	if rec.Stage == StageDone {
		return nil, nil
	}
	end := []byte(takenPrefix)
	end[len(end)-1]++
	result, err := r.cfg.Store.Range(ctx, store.RangeRequest{Key: []byte(takenPrefix), End: end})
	if err != nil {
		return nil, fmt.Errorf("read members' stages: %w", err)
	}
	// The register comes second: it holds whom a member let in before it gave its
	// word, and who may have got the keys of the stage before.
	members, err := r.cfg.Members(ctx)
	if err != nil {
		return nil, err
	}
	have := map[string]string{} // machines by names
	for _, kv := range result.KVs {
		var t taken
		if err := json.Unmarshal(kv.Value, &t); err != nil {
			continue // it says nothing
		}
		if t.ID == rec.ID && t.Stage.order() >= rec.Stage.order() {
			have[strings.TrimPrefix(string(kv.Key), takenPrefix)] = t.Machine
		}
	}
	var waiting []string
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if machine, ok := have[name]; !ok || machine != members[name] {
			waiting = append(waiting, name)
		}
	}
	return waiting, nil
}

// Start begins a rotation. It returns [ErrUnderWay] when one has not ended.
func (r *Runner) Start(ctx context.Context) (Status, error) {
	rec, mod, err := r.read(ctx)
	if err != nil {
		return Status{}, err
	}
	if rec != nil && rec.Stage != StageDone {
		return Status{}, fmt.Errorf("start rotation: %w, at stage %s since %s", ErrUnderWay, rec.Stage, rec.Started.Format(time.DateTime))
	}
	stages, err := pki.PlanRotation(r.cfg.Dir, r.cfg.Now())
	if err != nil {
		return Status{}, err
	}
	sealed, err := r.seal(stages)
	if err != nil {
		return Status{}, err
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return Status{}, fmt.Errorf("draw rotation id: %w", err)
	}
	began := record{
		ID: hex.EncodeToString(id), Stage: StageTrust, Started: r.cfg.Now().UTC().Truncate(time.Second),
		By: r.cfg.Name, Sealed: sealed,
	}
	written, err := r.write(ctx, began, mod)
	switch {
	case err != nil:
		return Status{}, err
	case !written:
		return Status{}, fmt.Errorf("start rotation: %w", ErrUnderWay)
	}
	return r.Status(ctx)
}

// Status tells how far the last rotation is.
func (r *Runner) Status(ctx context.Context) (Status, error) {
	rec, _, err := r.read(ctx)
	if err != nil || rec == nil {
		return Status{}, err
	}
	waiting, err := r.waiting(ctx, rec)
	if err != nil {
		return Status{}, err
	}
	return Status{ID: rec.ID, Stage: rec.Stage, Started: rec.Started, By: rec.By, Waiting: waiting}, nil
}

func (r *Runner) read(ctx context.Context) (*record, int64, error) {
	result, err := r.cfg.Store.Range(ctx, store.RangeRequest{Key: []byte(recordKey)})
	if err != nil {
		return nil, 0, fmt.Errorf("read rotation: %w", err)
	}
	if len(result.KVs) == 0 {
		return nil, 0, nil
	}
	var rec record
	if err := json.Unmarshal(result.KVs[0].Value, &rec); err != nil {
		return nil, 0, fmt.Errorf("read rotation: %w", err)
	}
	if rec.Stage.order() < 0 {
		return nil, 0, fmt.Errorf("read rotation: stage %.40q is not known to this version", rec.Stage)
	}
	return &rec, result.KVs[0].ModRevision, nil
}

// write replaces the record if it is still as it was at revision mod.
func (r *Runner) write(ctx context.Context, rec record, mod int64) (bool, error) {
	value, err := json.Marshal(rec)
	if err != nil {
		return false, fmt.Errorf("encode rotation: %w", err)
	}
	result, err := r.cfg.Store.Txn(ctx, store.Txn{
		If:   []store.Compare{{Key: []byte(recordKey), Target: store.TargetMod, Relation: store.Equal, Int: mod}},
		Then: []store.Op{{Kind: store.OpPut, Key: []byte(recordKey), Value: value}},
	})
	if err != nil {
		return false, fmt.Errorf("write rotation: %w", err)
	}
	return result.Succeeded, nil
}
