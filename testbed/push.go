package testbed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// RegistryPush puts the image of a tar file, as BuildImage or docker save
// write it, into a registry under repository:tag and returns the reference to
// pull it by.
func (c *Cluster) RegistryPush(ctx context.Context, registry, file, repository string) (string, error) {
	all, err := c.Registries()
	if err != nil {
		return "", err
	}
	for _, r := range all {
		if r.Name == registry {
			ref, err := c.push(ctx, r, file, repository)
			if err != nil {
				return "", fmt.Errorf("push %s: %w", file, err)
			}
			return ref, nil
		}
	}
	return "", fmt.Errorf("no registry %q: run testbed registry up first", registry)
}

func (c *Cluster) push(ctx context.Context, r Registry, file, repository string) (string, error) {
	ca, err := os.ReadFile(r.CAFile)
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return "", errors.New("no certificate in " + r.CAFile)
	}
	img, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		return "", err
	}
	ref, err := name.ParseReference(r.Host + "/" + repository)
	if err != nil {
		return "", err
	}
	hostName, port, _ := strings.Cut(r.Host, ":")
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: hostName, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return inNetns(c.bridgeFile(), func() (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp4", net.JoinHostPort(r.Address, port))
			})
		},
	}
	defer transport.CloseIdleConnections()
	err = remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(transport),
		remote.WithAuth(&authn.Basic{Username: r.Username, Password: r.Password}))
	if err != nil {
		return "", err
	}
	return ref.Name(), nil
}
