package store

import "errors"

// KeyValue is one key as it stood at one revision.
type KeyValue struct {
	Key            []byte
	Value          []byte
	CreateRevision int64 // revision of the create this life of the key began with
	ModRevision    int64 // revision of this change
	Version        int64 // changes since the create, 1 for the create itself
	Lease          int64 // lease the key is attached to, 0 for none
}

// Target names the property of a key that a [Compare] looks at.
type Target int

// The targets of a compare, as in the etcd v3 API.
const (
	TargetVersion Target = iota
	TargetCreate
	TargetMod
	TargetValue
	TargetLease
)

// Relation is how a [Compare] relates the property to the wanted value.
type Relation int

// The relations of a compare, as in the etcd v3 API.
const (
	Equal Relation = iota
	Greater
	Less
	NotEqual
)

// Compare is one guard of a [Txn]. An absent key has version, create, mod and
// lease zero and never satisfies a value compare.
type Compare struct {
	Key      []byte
	End      []byte // empty: the one key; "\x00": all keys from Key on; else [Key, End)
	Target   Target
	Relation Relation
	Int      int64  // for every target but TargetValue
	Value    []byte // for TargetValue
}

// OpKind is what an [Op] does.
type OpKind int

// The operations of a transaction.
const (
	OpRange OpKind = iota
	OpPut
	OpDelete
)

// Op is one operation of a [Txn].
type Op struct {
	Kind  OpKind
	Range RangeRequest // OpRange

	Key         []byte // OpPut, OpDelete
	End         []byte // OpDelete; as in Compare
	Value       []byte // OpPut
	Lease       int64  // OpPut
	IgnoreValue bool   // OpPut: keep the present value
	IgnoreLease bool   // OpPut: keep the present lease
	PrevKV      bool   // OpPut, OpDelete: return what was replaced
}

// Txn is a guarded list of operations, applied atomically with respect to
// reads: either branch is seen whole or not at all. Every put and every
// deleted key gets a revision of its own, in order.
type Txn struct {
	If         []Compare
	Then, Else []Op
}

// OpResult is the outcome of one [Op].
type OpResult struct {
	Kind    OpKind
	Range   RangeResult // OpRange
	Prev    []KeyValue  // OpPut, OpDelete with PrevKV
	Deleted int64       // OpDelete: number of keys deleted
}

// TxnResult is the outcome of a [Txn].
type TxnResult struct {
	Revision  int64 // the store's revision after the transaction
	Succeeded bool
	Results   []OpResult
}

// RangeRequest reads keys in key order.
type RangeRequest struct {
	Key, End  []byte // as in Compare
	Revision  int64  // 0: the newest
	Limit     int64  // 0: no limit
	KeysOnly  bool
	CountOnly bool
}

// RangeResult is one consistent view at Revision.
type RangeResult struct {
	Revision int64 // the store's newest revision when the range was answered
	KVs      []KeyValue
	Count    int64 // keys in the range at the requested revision, limit or not
	More     bool  // the limit cut the answer short
}

// EventType says whether an [Event] put or deleted its key.
type EventType int

// The event types.
const (
	EventPut EventType = iota
	EventDelete
)

// Event is one applied change as a watcher sees it. Deletes carry the key and
// the ModRevision of the delete only.
type Event struct {
	Type EventType
	KV   KeyValue
	Prev *KeyValue // what the key was just before, nil for a create or once compacted
}

// WatchRequest asks for the changes of a range of keys.
type WatchRequest struct {
	Key, End      []byte // as in Compare
	StartRevision int64  // first revision wanted; 0: changes after now
}

// Errors a caller branches on. The etcd service maps each to etcd's own.
var (
	// ErrCompacted: the revision asked for has been compacted away.
	ErrCompacted = errors.New("required revision has been compacted")
	// ErrFutureRevision: the revision asked for has not happened.
	ErrFutureRevision = errors.New("required revision is a future revision")
	// ErrLeaseNotFound: no lease has this ID.
	ErrLeaseNotFound = errors.New("lease not found")
	// ErrLeaseExists: the lease ID asked for is in use.
	ErrLeaseExists = errors.New("lease already exists")
	// ErrKeyNotFound: IgnoreValue or IgnoreLease on an absent key.
	ErrKeyNotFound = errors.New("key not found")
	// ErrTooLarge: the request exceeds Config.MaxRequestBytes.
	ErrTooLarge = errors.New("request is too large")
	// ErrNoSpace: the disk is full; reads go on, writes wait for room.
	ErrNoSpace = errors.New("no space left for the store")
	// ErrDuplicateKey: one transaction puts a key twice.
	ErrDuplicateKey = errors.New("duplicate key given in transaction")
	// ErrClosed: the store has been closed.
	ErrClosed = errors.New("store is closed")
)

// ErrLocked: another process has the data directory open.
var ErrLocked = errors.New("data directory is in use by another process")

// Batch is what a [Watcher] delivers: events in revision order, or none when
// it only reports progress. Every change of the watched range up to Revision
// has been delivered with this batch or before it.
type Batch struct {
	Events   []Event
	Revision int64
}

// Lease is a granted time to live.
type Lease struct {
	ID  int64
	TTL int64 // seconds granted
}

// LeaseStatus is a lease as it stands now.
type LeaseStatus struct {
	Lease
	Remaining int64    // seconds left, rounded up
	Keys      [][]byte // keys attached, when asked for
}

// ErrDamaged: a file of the store is damaged.
var ErrDamaged = errors.New("store is damaged")
