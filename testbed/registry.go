package testbed

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sys/unix"
)

const registryPort = 5000

// registryHost is the name of the i-th registry, in /etc/hosts of every node
// from its boot on.
func registryHost(i int) string {
	if i == 0 {
		return "registry.testbed"
	}
	return fmt.Sprintf("registry%d.testbed", i+1)
}

// Registry is a running image registry and how to reach it.
type Registry struct {
	Name     string `json:"name"`
	Host     string `json:"host"` // name and port, as image references have it
	Address  string `json:"address"`
	CAFile   string `json:"caFile"` // on the machine
	Username string `json:"username"`
	Password string `json:"password"`
	Log      string `json:"log"` // a line for each request it took
}

// registryConfig is what the registry's process is told on its input.
type registryConfig struct {
	Data     string `json:"data"`
	Cert     []byte `json:"cert"`
	Key      []byte `json:"key"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// RegistryUp starts a registry, with TLS by a CA of its own and a password,
// in a network namespace of its own on the cluster's bridge. One of that name
// that runs is returned as it is.
func (c *Cluster) RegistryUp(ctx context.Context, name string) (Registry, error) {
	var out Registry
	err := c.locked(func(s *state) error {
		for i, r := range s.Registries {
			if r.Name == name && r.Process.alive() {
				out = c.describe(r, i)
				return nil
			}
			if r.Name == name {
				return fmt.Errorf("registry %s has died, see %s", name, c.path("registries", name, "log"))
			}
		}
		i := len(s.Registries)
		if i >= maxRegistries {
			return fmt.Errorf("start registry: there are %d already", i)
		}
		password := make([]byte, 12)
		if _, err := rand.Read(password); err != nil {
			return err
		}
		r := &registryState{
			Name: name, Addr: host(s.Subnet, firstRegistry+i),
			Username: "moot", Password: hex.EncodeToString(password),
		}
		out = c.describe(r, i)
		if err := c.startRegistry(s, r, out); err != nil {
			return errors.Join(fmt.Errorf("start registry %s: %w", name, err), ctx.Err())
		}
		return nil
	})
	return out, err
}

// Registries lists the cluster's registries.
func (c *Cluster) Registries() ([]Registry, error) {
	s, err := c.load()
	if err != nil {
		return nil, err
	}
	var out []Registry
	for i, r := range s.Registries {
		out = append(out, c.describe(r, i))
	}
	return out, nil
}

func (c *Cluster) describe(r *registryState, i int) Registry {
	return Registry{
		Name: r.Name, Host: fmt.Sprintf("%s:%d", registryHost(i), registryPort), Address: r.Addr.String(),
		CAFile: c.path("registries", r.Name, "ca.crt"), Username: r.Username, Password: r.Password,
		Log: c.path("registries", r.Name, "log"),
	}
}

func (c *Cluster) startRegistry(s *state, r *registryState, d Registry) error {
	if r.Name != filepath.Base(r.Name) || strings.HasPrefix(r.Name, ".") {
		return fmt.Errorf("bad name %q", r.Name)
	}
	dir := c.path("registries", r.Name)
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return err
	}
	cfg := registryConfig{Data: data, Username: r.Username, Password: r.Password}
	hostName, _, _ := strings.Cut(d.Host, ":")
	var ca []byte
	var err error
	if ca, cfg.Cert, cfg.Key, err = issue(hostName, r.Addr); err != nil {
		return err
	}
	if err := os.WriteFile(d.CAFile, ca, 0o644); err != nil {
		return err
	}
	in, out, err := spawnRegistry(r, d.Log)
	if err != nil {
		return err
	}
	defer func() { _, _ = in.Close(), out.Close() }()
	s.Registries = append(s.Registries, r)
	if err := c.save(s); err != nil {
		return err
	}
	if err := c.plug(fmt.Sprintf("r%d", len(s.Registries)), r.Addr, s.Subnet, r.Process.PID, linkUpState); err != nil {
		return err
	}
	if err := json.NewEncoder(in).Encode(cfg); err != nil {
		return err
	}
	if err := in.Close(); err != nil {
		return err
	}
	if answer, err := io.ReadAll(out); err != nil || string(answer) != "ok" {
		return errors.Join(fmt.Errorf("it did not come up: %s", tail(d.Log, 5)), err)
	}
	return nil
}

// spawnRegistry starts the process, which waits for its configuration.
func spawnRegistry(r *registryState, logPath string) (in, out *os.File, err error) {
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = logFile.Close() }()
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = inR.Close() }()
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, inW.Close())
	}
	defer func() { _ = outW.Close() }()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{registryName}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Files: []uintptr{inR.Fd(), outW.Fd(), logFile.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNET},
	})
	if err == nil {
		r.Process, err = identify(pid)
	}
	if err != nil {
		return nil, nil, errors.Join(err, inW.Close(), outR.Close())
	}
	return inW, outR, nil
}

// runRegistry is the registry's process.
func runRegistry() error {
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	var cfg registryConfig
	if err := json.NewDecoder(os.Stdin).Decode(&cfg); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	cert, err := tls.X509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", registryPort))
	if err != nil {
		return err
	}
	logger := log.New(os.Stderr, "", log.LstdFlags|log.Lmicroseconds)
	srv := &http.Server{
		Handler: authenticated(cfg, registry.New(
			registry.Logger(logger), registry.WithBlobHandler(registry.NewDiskBlobHandler(cfg.Data)))),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ErrorLog:          logger,
		ReadHeaderTimeout: 30 * time.Second,
	}
	if _, err := os.Stdout.WriteString("ok"); err != nil {
		return err
	}
	if err := detachStdio(); err != nil {
		return err
	}
	return srv.ServeTLS(l, "", "")
}

func authenticated(cfg registryConfig, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if !ok || subtle.ConstantTimeCompare([]byte(user), []byte(cfg.Username)) != 1 ||
			subtle.ConstantTimeCompare([]byte(password), []byte(cfg.Password)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="testbed"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong or no password"}]}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// issue makes a CA and a server certificate by it.
func issue(hostName string, addr netip.Addr) (ca, cert, key []byte, err error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	caTmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "testbed CA of " + hostName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leafTmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: hostName},
		NotBefore: caTmpl.NotBefore, NotAfter: caTmpl.NotAfter,
		DNSNames: []string{hostName}, IPAddresses: []net.IP{addr.AsSlice()},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caTmpl, caTmpl, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, nil, nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leafTmpl, caTmpl, &leafKey.PublicKey, caKey)
	if err != nil {
		return nil, nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return nil, nil, nil, err
	}
	encode := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	chain := bytes.Join([][]byte{encode("CERTIFICATE", leafDER), encode("CERTIFICATE", caDER)}, nil)
	return encode("CERTIFICATE", caDER), chain, encode("PRIVATE KEY", keyDER), nil
}
