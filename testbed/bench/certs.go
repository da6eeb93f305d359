package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// keyring issues the rival's certificates, all into one directory. What an
// installer would have made long before is made before the rival's clock
// matters: with keys of a quick kind.
type keyring struct {
	dir    string
	serial int64
	ca     *x509.Certificate
	caKey  crypto.Signer
}

func (k *keyring) path(name string) string { return filepath.Join(k.dir, name) }

func newKeyring(dir string) (*keyring, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	k := &keyring{dir: dir, serial: 1}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	k.caKey = key
	template := k.template("bench-ca", nil)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	if k.ca, err = x509.ParseCertificate(raw); err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	return k, k.write("ca", raw, key)
}

func (k *keyring) template(user string, groups []string) *x509.Certificate {
	k.serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(k.serial),
		Subject:      pkix.Name{CommonName: user, Organization: groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(30 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// issue writes name.crt and name.key.
func (k *keyring) issue(name, user string, groups, hosts []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("issue %s: %w", name, err)
	}
	template := k.template(user, groups)
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, k.ca, key.Public(), k.caKey)
	if err != nil {
		return fmt.Errorf("issue %s: %w", name, err)
	}
	return k.write(name, raw, key)
}

func (k *keyring) write(name string, certificate []byte, key *ecdsa.PrivateKey) error {
	if err := writePEM(k.path(name+".crt"), "CERTIFICATE", certificate); err != nil {
		return err
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := writePEM(k.path(name+".key"), "EC PRIVATE KEY", raw); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return writePEM(k.path(name+".pub"), "PUBLIC KEY", public)
}

func writePEM(path, kind string, raw []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600)
}

// kubeconfig issues a client certificate and writes a kubeconfig with it.
func (k *keyring) kubeconfig(file, user string, groups ...string) error {
	name := filepath.Base(file)
	if err := k.issue(name, user, groups, nil); err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["bench"] = &clientcmdapi.Cluster{Server: "https://127.0.0.1:6443", CertificateAuthority: k.path("ca.crt")}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificate: k.path(name + ".crt"), ClientKey: k.path(name + ".key")}
	config.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: user}
	config.CurrentContext = "bench"
	return clientcmd.WriteToFile(*config, file)
}
