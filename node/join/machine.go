package join

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// machineFile holds the secret by which the register knows a data directory
// again: who asks to join by a name that is registered must have it.
const machineFile = "machine"

// Machine returns the secret of a data directory, drawn on the first call.
func Machine(dataDir string) (Secret, error) {
	path := filepath.Join(dataDir, machineFile)
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		secret := strings.TrimSpace(string(data))
		if !isHex(secret, 2*secretBytes) {
			return "", fmt.Errorf("read %s: it does not hold the machine's secret; remove it, then run `moot remove` for this node's name on a member and join again", path)
		}
		return Secret(secret), nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("read the machine's secret: %w", err)
	}
	random := make([]byte, secretBytes)
	if _, err := rand.Read(random); err != nil {
		return "", fmt.Errorf("draw the machine's secret: %w", err)
	}
	secret := hex.EncodeToString(random)
	if err := ReplaceFile(path, []byte(secret+"\n")); err != nil {
		return "", fmt.Errorf("keep the machine's secret: %w", err)
	}
	return Secret(secret), nil
}
