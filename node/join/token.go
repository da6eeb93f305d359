package join

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

const (
	tokenPrefix = "moot1"
	pinDigits   = 2 * sha256.Size
	idDigits    = 10
	secretBytes = 16
)

// Token lets a machine join: moot1.PIN.ID.SECRET. Pin is the hash of the key of
// the cluster's peer authority, by which the machine recognises the cluster;
// the secret is how the cluster recognises the machine.
type Token struct {
	Pin    string // hexadecimal SHA-256
	ID     string // names the token in lists; no secret
	Secret Secret // 128 random bits, hexadecimal
}

func newToken(pin string) (Token, error) {
	random := make([]byte, idDigits/2+secretBytes)
	if _, err := rand.Read(random); err != nil {
		return Token{}, fmt.Errorf("draw token: %w", err)
	}
	t := Token{
		Pin: pin, ID: hex.EncodeToString(random[:idDigits/2]),
		Secret: Secret(hex.EncodeToString(random[idDigits/2:])),
	}
	if !isHex(pin, pinDigits) {
		return Token{}, errors.New("make token: the cluster's pin is not a SHA-256 hash")
	}
	return t, nil
}

// ParseToken reads a token as Text wrote it, spaces around it allowed.
func ParseToken(text string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) != 4 || parts[0] != tokenPrefix || !isHex(parts[1], pinDigits) ||
		!isHex(parts[2], idDigits) || !isHex(parts[3], 2*secretBytes) {
		return Token{}, errors.New("read token: it is not one, or a part of it is missing; " +
			"copy the whole of what `moot token create` printed, starting with " + tokenPrefix)
	}
	return Token{Pin: parts[1], ID: parts[2], Secret: Secret(parts[3])}, nil
}

// Text is the token as a user passes it on, secret included.
func (t Token) Text() string {
	return strings.Join([]string{tokenPrefix, t.Pin, t.ID, string(t.Secret)}, ".")
}

// credential is what the machine sends once it has recognised the cluster.
func (t Token) credential() Secret { return Secret(t.ID + "." + string(t.Secret)) }

// String names the token without its secret.
func (t Token) String() string { return "token " + t.ID }

// GoString names the token without its secret.
func (t Token) GoString() string { return t.String() }

// LogValue names the token without its secret.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.ID) }

func parseCredential(s Secret) (id string, secret Secret, ok bool) {
	id, rest, ok := strings.Cut(string(s), ".")
	return id, Secret(rest), ok && isHex(id, idDigits) && isHex(rest, 2*secretBytes)
}

func isHex(s string, digits int) bool {
	if len(s) != digits {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
