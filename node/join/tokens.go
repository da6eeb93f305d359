package join

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/mootkube/moot/gossip/store"
)

// DefaultTTL is how long a token is good for unless told otherwise.
const DefaultTTL = 24 * time.Hour

const (
	tokensPrefix = "/moot/tokens/"
	maxTokens    = 1000 // at once; the rest are refused
	keepExpired  = 7 * 24 * time.Hour
	triesOfTxn   = 20
)

// Store is the replicated store, as far as tokens and the register need it.
// [store.Store] is one.
type Store interface {
	Range(ctx context.Context, req store.RangeRequest) (store.RangeResult, error)
	Txn(ctx context.Context, t store.Txn) (store.TxnResult, error)
}

// TokenInfo is a token as every member keeps it: without the secret.
type TokenInfo struct {
	ID          string    `json:"id"`
	Hash        string    `json:"hash"` // SHA-256 of the secret
	Pin         string    `json:"pin"`  // the authority by which machines recognise the cluster
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires,omitzero"` // zero: never
	Uses        int       `json:"uses"`             // machines that became members with it
	LastUsed    time.Time `json:"lastUsed,omitzero"`
}

// Expired reports whether the token is not good any more at now.
func (t TokenInfo) Expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

// LogValue leaves the hash out.
func (t TokenInfo) LogValue() slog.Value { return slog.StringValue(t.ID) }

// Tokens are the cluster's join tokens. Its methods may be called from many
// goroutines and on many members.
type Tokens struct {
	store Store
	now   func() time.Time
}

// NewTokens returns the tokens kept in s.
func NewTokens(s Store, now func() time.Time) *Tokens { return &Tokens{store: s, now: now} }

// ErrNoToken means that there is no token of that id.
var ErrNoToken = errors.New("no such token; moot token list shows all")

// Create makes a token that is good for ttl, for ever when that is 0. pin is
// [pki.PeerIdentity.Pin]. The secret is nowhere but in the returned token.
func (t *Tokens) Create(ctx context.Context, pin string, ttl time.Duration, description string) (Token, TokenInfo, error) {
	switch {
	case ttl < 0:
		return Token{}, TokenInfo{}, fmt.Errorf("create token: a time to live of %s has passed already", ttl)
	case len(description) > 200:
		return Token{}, TokenInfo{}, errors.New("create token: the description is longer than 200 bytes")
	}
	all, err := t.List(ctx)
	if err != nil {
		return Token{}, TokenInfo{}, err
	}
	if len(all) >= maxTokens {
		return Token{}, TokenInfo{}, fmt.Errorf("create token: there are %d already; revoke some first", len(all))
	}
	token, err := newToken(pin)
	if err != nil {
		return Token{}, TokenInfo{}, err
	}
	now := t.now().UTC().Truncate(time.Second)
	info := TokenInfo{ID: token.ID, Hash: token.Secret.Hash(), Pin: pin, Description: description, Created: now}
	if ttl > 0 {
		info.Expires = now.Add(ttl)
	}
	if err := update(ctx, t.store, tokensPrefix+token.ID, func([]byte) (any, error) { return info, nil }); err != nil {
		return Token{}, TokenInfo{}, fmt.Errorf("create token: %w", err)
	}
	return token, info, t.sweep(ctx, all, now)
}

// sweep forgets tokens that expired long ago.
func (t *Tokens) sweep(ctx context.Context, all []TokenInfo, now time.Time) error {
	for _, info := range all {
		if info.Expired(now.Add(-keepExpired)) {
			if err := t.Revoke(ctx, info.ID); err != nil && !errors.Is(err, ErrNoToken) {
				return err
			}
		}
	}
	return nil
}

// List returns the tokens, expired ones too, in order of their ids.
func (t *Tokens) List(ctx context.Context) ([]TokenInfo, error) {
	result, err := t.store.Range(ctx, below(tokensPrefix))
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	var all []TokenInfo
	for _, kv := range result.KVs {
		var info TokenInfo
		if err := json.Unmarshal(kv.Value, &info); err != nil {
			return nil, fmt.Errorf("read token %s: %w", strings.TrimPrefix(string(kv.Key), tokensPrefix), err)
		}
		all = append(all, info)
	}
	return all, nil
}

// Revoke makes a token useless. It returns [ErrNoToken] when there is none.
func (t *Tokens) Revoke(ctx context.Context, id string) error {
	if !isHex(id, idDigits) {
		return fmt.Errorf("revoke token %.80q: %w", id, ErrNoToken)
	}
	result, err := t.store.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: []byte(tokensPrefix + id)}}})
	switch {
	case err != nil:
		return fmt.Errorf("revoke token %s: %w", id, err)
	case result.Results[0].Deleted == 0:
		return fmt.Errorf("revoke token %s: %w", id, ErrNoToken)
	}
	return nil
}

// check returns the token that credential is of, or why it is not good.
func (t *Tokens) check(ctx context.Context, credential Secret) (TokenInfo, *Refusal, error) {
	unknown := refuse(ReasonToken, "the token is not one of this cluster's, or was revoked; make one with `moot token create` on a member")
	id, secret, ok := parseCredential(credential)
	if !ok {
		return TokenInfo{}, unknown, nil
	}
	result, err := t.store.Range(ctx, store.RangeRequest{Key: []byte(tokensPrefix + id)})
	if err != nil {
		return TokenInfo{}, nil, fmt.Errorf("read token: %w", err)
	}
	// A token that is not there takes as long to refuse as one with a wrong secret.
	var info TokenInfo
	if len(result.KVs) == 1 {
		if err := json.Unmarshal(result.KVs[0].Value, &info); err != nil {
			return TokenInfo{}, nil, fmt.Errorf("read token: %w", err)
		}
	}
	if subtle.ConstantTimeCompare([]byte(secret.Hash()), []byte(info.Hash)) != 1 {
		return TokenInfo{}, unknown, nil
	}
	if now := t.now(); info.Expired(now) {
		return TokenInfo{}, refuse(ReasonExpired, "token %s expired on %s, %s ago; make one with `moot token create` on a member",
			info.ID, info.Expires.Format(time.DateTime+" MST"), now.Sub(info.Expires).Round(time.Second)), nil
	}
	return info, nil, nil
}

// used counts a machine that became a member. A token that was revoked
// meanwhile stays so.
func (t *Tokens) used(ctx context.Context, id string) error {
	err := update(ctx, t.store, tokensPrefix+id, func(held []byte) (any, error) {
		var info TokenInfo
		if held == nil {
			return nil, nil
		}
		if err := json.Unmarshal(held, &info); err != nil {
			return nil, err
		}
		info.Uses, info.LastUsed = info.Uses+1, t.now().UTC().Truncate(time.Second)
		return info, nil
	})
	if err != nil {
		return fmt.Errorf("count use of token %s: %w", id, err)
	}
	return nil
}

// below asks for all keys with a prefix that ends in "/".
func below(prefix string) store.RangeRequest {
	end := []byte(prefix)
	end[len(end)-1]++
	return store.RangeRequest{Key: []byte(prefix), End: end}
}

// update replaces what key holds by what change makes of it, nil when there is
// nothing; a nil result changes nothing. It tries again when another write
// comes between.
func update(ctx context.Context, s Store, key string, change func(held []byte) (any, error)) error {
	for range triesOfTxn {
		result, err := s.Range(ctx, store.RangeRequest{Key: []byte(key)})
		if err != nil {
			return err
		}
		var held []byte
		var mod int64
		if len(result.KVs) == 1 {
			held, mod = result.KVs[0].Value, result.KVs[0].ModRevision
		}
		want, err := change(held)
		if err != nil || want == nil {
			return err
		}
		value, err := json.Marshal(want)
		if err != nil {
			return err
		}
		if bytes.Equal(value, held) {
			return nil
		}
		done, err := s.Txn(ctx, store.Txn{
			If:   []store.Compare{{Key: []byte(key), Target: store.TargetMod, Relation: store.Equal, Int: mod}},
			Then: []store.Op{{Kind: store.OpPut, Key: []byte(key), Value: value}},
		})
		if err != nil || done.Succeeded {
			return err
		}
	}
	return fmt.Errorf("write %s: other writes came between %d times", key, triesOfTxn)
}
