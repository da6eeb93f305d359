package pki

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// Material is what all members of a cluster share: its authorities, its service
// account key and what members recognise each other by, each as PEM. Whoever
// has it is the cluster.
type Material struct {
	CACert, CAKey                 []byte
	FrontProxyCert, FrontProxyKey []byte
	ServiceAccountKey             []byte
	Peers                         []byte // cluster id, peer authorities, gossip keys
}

// LogValue keeps the keys out of logs.
func (m Material) LogValue() slog.Value { return slog.StringValue(m.String()) }

// String keeps the keys out of messages.
func (m Material) String() string { return "cluster keys (hidden)" }

// GoString keeps the keys out of messages.
func (m Material) GoString() string { return m.String() }

// ClusterID is the id of the cluster, empty when the material is not valid.
func (m Material) ClusterID() string {
	p, err := parsePeers(m.Peers)
	if err != nil {
		return ""
	}
	return p.id()
}

// Validate checks that each part can be read and fits its other half.
func (m Material) Validate() error {
	if _, err := parseAuthority(m.CACert, m.CAKey); err != nil {
		return fmt.Errorf("check cluster authority: %w", err)
	}
	if _, err := parseAuthority(m.FrontProxyCert, m.FrontProxyKey); err != nil {
		return fmt.Errorf("check front proxy authority: %w", err)
	}
	if _, err := decodeKey(m.ServiceAccountKey); err != nil {
		return fmt.Errorf("check service account key: %w", err)
	}
	if _, err := parsePeers(m.Peers); err != nil {
		return fmt.Errorf("check members' keys: %w", err)
	}
	return nil
}

type materialFile struct {
	name string
	data *[]byte
}

// files orders the parts as they are written: keys before certificates.
func (m *Material) files() []materialFile {
	return []materialFile{
		{caBase + ".key", &m.CAKey},
		{caBase + ".crt", &m.CACert},
		{frontProxyBase + ".key", &m.FrontProxyKey},
		{frontProxyBase + ".crt", &m.FrontProxyCert},
		{saKeyFile, &m.ServiceAccountKey},
		{peersFile, &m.Peers},
	}
}

// Export reads what a joining member needs from a directory that [Ensure]
// completed.
func Export(dir string) (Material, error) {
	var m Material
	for _, f := range m.files() {
		data, err := os.ReadFile(filepath.Join(dir, f.name))
		if err != nil {
			return Material{}, fmt.Errorf("export cluster keys: %w", err)
		}
		*f.data = data
	}
	if err := m.Validate(); err != nil {
		return Material{}, fmt.Errorf("export cluster keys: %w", err)
	}
	return m, nil
}

// ErrOtherCluster means that the directory holds another cluster's keys.
var ErrOtherCluster = errors.New("the directory holds another cluster's keys")

// BeginImport marks dir, which may not exist yet, as about to be imported into:
// [Ensure] refuses it until an [Import] has ended.
func BeginImport(dir string) error {
	if err := prepareDir(dir); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, joiningFile), nil)
}

// Import writes a cluster's material into dir, before the first [Ensure]. After
// an interruption it completes when called again with the same material. A
// member that was away while the members' keys rotated gets the new ones. It
// returns [ErrOtherCluster] and changes nothing when dir belongs elsewhere.
func Import(dir string, m Material) error {
	if err := m.Validate(); err != nil {
		return fmt.Errorf("import cluster keys: %w", err)
	}
	if err := prepareDir(dir); err != nil {
		return err
	}
	missing := 0
	for _, f := range m.files() {
		have, err := readFile(filepath.Join(dir, f.name))
		switch {
		case err != nil:
			return err
		case have == nil:
			missing++
		case f.name == peersFile && (Material{Peers: have}).ClusterID() == m.ClusterID():
			if !bytes.Equal(have, *f.data) {
				missing++ // keys of the same cluster, rotated since
			}
		case !bytes.Equal(have, *f.data):
			return fmt.Errorf("import cluster keys into %s: %w", dir, ErrOtherCluster)
		}
	}
	joining := filepath.Join(dir, joiningFile)
	if missing > 0 {
		if err := writeFile(joining, nil); err != nil {
			return err
		}
		for _, f := range m.files() {
			if err := writeFile(filepath.Join(dir, f.name), *f.data); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(joining); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("import cluster keys: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("import cluster keys: %w", err)
	}
	return nil
}
