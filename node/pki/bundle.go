package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Base names of the files every member holds alike.
const (
	caBase         = "ca"
	frontProxyBase = "front-proxy-ca"
	saKeyFile      = "service-account.key"
	saPublicFile   = "service-account.pub"
	joiningFile    = "joining" // there while [Import] is at work
)

// Pair is a certificate and its key, as paths of PEM files.
type Pair struct{ Cert, Key string }

// Bundle is where everything is. Paths are absolute when the directory was
// given so.
type Bundle struct {
	CA           Pair // signs every client and server of the cluster
	FrontProxyCA Pair // signs the API servers towards extension API servers

	// Cluster is the cluster's id; it outlives every rotation. Peers is the file
	// that members recognise each other by, Peer this node's certificate among
	// them, client and server; see [Bundle.PeerIdentity].
	Cluster string
	Peers   string
	Peer    Pair

	ServiceAccountKey    string // signs service account tokens
	ServiceAccountPublic string // verifies them

	APIServer        Pair // serves the Kubernetes API
	KubeletServing   Pair // serves the kubelet's API
	KubeletClient    Pair // the API server as a client of kubelets
	FrontProxyClient Pair // the API server as a client of extension API servers

	// Kubeconfigs, each with its certificate and key inside.
	Admin, Kubelet, ControllerManager, Scheduler, Leader, Proxy, DNS, Volume string

	// Issued names the files that were written and why, in order; empty when
	// all were good.
	Issued []Issued
}

// Issued is a file that was written, and what was wrong with the old one.
type Issued struct{ File, Why string }

// ensurer carries one call of [Ensure].
type ensurer struct {
	dir    string
	params Params
	now    time.Time
	ca     *authority
	bundle *Bundle
}

func (e *ensurer) note(file, why string) {
	e.bundle.Issued = append(e.bundle.Issued, Issued{File: file, Why: why})
}

// Ensure makes the directory complete and valid at time now and returns where
// everything is. It may be called at any time, also while the node runs: files
// that are good are not touched.
func Ensure(dir string, p Params, now time.Time) (*Bundle, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("check key parameters: %w", err)
	}
	if now.Before(clockFloor()) {
		return nil, fmt.Errorf("issue certificates: the clock says %s; set it first", now.UTC().Format(time.DateTime))
	}
	if err := prepareDir(dir); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, joiningFile)); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("use %s: taking over a cluster's keys was interrupted; join again, restore again, or remove the directory to start a new cluster", dir)
	}
	e := &ensurer{dir: dir, params: p, now: now, bundle: &Bundle{}}
	if err := e.ensureAll(); err != nil {
		return nil, err
	}
	return e.bundle, nil
}

func (e *ensurer) ensureAll() error {
	var err error
	if e.ca, err = ensureAuthority(e.dir, caBase, "moot-ca", e.now); err != nil {
		return err
	}
	frontProxy, err := ensureAuthority(e.dir, frontProxyBase, "moot-front-proxy-ca", e.now)
	if err != nil {
		return err
	}
	e.bundle.CA, e.bundle.FrontProxyCA = e.pair(caBase), e.pair(frontProxyBase)
	if err := e.ensureServiceAccountKey(); err != nil {
		return err
	}
	if err := e.ensurePeers(); err != nil {
		return err
	}
	pairs := []struct {
		base string
		by   *authority
		leaf leaf
		to   *Pair
	}{
		{"apiserver", e.ca, e.params.apiServer(), &e.bundle.APIServer},
		{"kubelet-serving", e.ca, e.params.kubelet(), &e.bundle.KubeletServing},
		{"apiserver-kubelet-client", e.ca, leaf{user: UserKubeletClient, groups: []string{GroupKubeletAPI}}, &e.bundle.KubeletClient},
		{"front-proxy-client", frontProxy, leaf{user: UserFrontProxy}, &e.bundle.FrontProxyClient},
	}
	for _, p := range pairs {
		if *p.to, err = e.ensurePair(p.base, p.by, p.leaf); err != nil {
			return err
		}
	}
	for _, c := range clients(e.params.NodeName) {
		path := filepath.Join(e.dir, c.file+".kubeconfig")
		if err := e.ensureKubeconfig(path, filepath.Base(path), c.leaf); err != nil {
			return err
		}
		*c.path(e.bundle) = path
	}
	e.bundle.Admin = e.params.AdminKubeconfig
	if e.bundle.Admin == "" {
		e.bundle.Admin = filepath.Join(e.dir, "admin.kubeconfig")
	}
	return e.ensureKubeconfig(e.bundle.Admin, filepath.Base(e.bundle.Admin), leaf{user: UserAdmin, groups: []string{GroupMasters}})
}

// ensureServiceAccountKey loads or makes the key that signs service account
// tokens; the public half is written from it.
func (e *ensurer) ensureServiceAccountKey() error {
	keyPath, publicPath := filepath.Join(e.dir, saKeyFile), filepath.Join(e.dir, saPublicFile)
	keyPEM, err := readFile(keyPath)
	if err != nil {
		return err
	}
	publicPEM, err := readFile(publicPath)
	if err != nil {
		return err
	}
	if keyPEM == nil {
		if publicPEM != nil {
			return fmt.Errorf("read %s: it is missing while %s is there; restore it from a backup or another member", keyPath, publicPath)
		}
		key, err := newKey()
		if err != nil {
			return err
		}
		if keyPEM, err = encodeKey(key); err != nil {
			return err
		}
		if err := writeFile(keyPath, keyPEM); err != nil {
			return err
		}
	}
	key, err := decodeKey(keyPEM)
	if err != nil {
		return fmt.Errorf("load %s: %w; restore it from a backup or another member", keyPath, err)
	}
	want, err := encodePublicKey(key.Public())
	if err != nil {
		return err
	}
	if !bytes.Equal(publicPEM, want) {
		if err := writeFile(publicPath, want); err != nil {
			return err
		}
	}
	e.bundle.ServiceAccountKey, e.bundle.ServiceAccountPublic = keyPath, publicPath
	return nil
}
