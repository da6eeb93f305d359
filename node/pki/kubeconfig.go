package pki

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const clusterName = "moot"

// ensureKubeconfig keeps at path a kubeconfig that reaches this node's API
// server as l. Certificate and key are inside it, so that one rename replaces
// both and the file can be copied elsewhere.
func (e *ensurer) ensureKubeconfig(path, name string, l leaf) error {
	old, err := readFile(path)
	if err != nil {
		return err
	}
	certPEM, keyPEM := identityIn(old)
	why := e.ca.fault(l, certPEM, keyPEM, e.now)
	if why != "" {
		if certPEM, keyPEM, err = e.ca.issue(l, e.now); err != nil {
			return err
		}
	}
	data, err := e.kubeconfig(l.user, certPEM, keyPEM)
	if err != nil {
		return err
	}
	if bytes.Equal(data, old) {
		if err := os.Chmod(path, 0o600); err != nil { // a restore may have opened it
			return fmt.Errorf("protect kubeconfig: %w", err)
		}
		return nil
	}
	if why == "" {
		why = "API server or authority changed"
	}
	if err := writeFile(path, data); err != nil {
		return err
	}
	e.note(name, why)
	return nil
}

func (e *ensurer) kubeconfig(user string, certPEM, keyPEM []byte) ([]byte, error) {
	server := "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(e.params.APIPort))
	config := clientcmdapi.NewConfig()
	config.Clusters[clusterName] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: encodeCert(e.ca.cert)}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: certPEM, ClientKeyData: keyPEM}
	config.Contexts[clusterName] = &clientcmdapi.Context{Cluster: clusterName, AuthInfo: user}
	config.CurrentContext = clusterName
	data, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig of %s: %w", user, err)
	}
	return data, nil
}

// identityIn returns the certificate and key in a kubeconfig, nil when it has
// none or cannot be read: both mean that it is written anew.
func identityIn(data []byte) (certPEM, keyPEM []byte) {
	if data == nil {
		return nil, nil
	}
	config, err := clientcmd.Load(data)
	if err != nil {
		return nil, nil
	}
	current, ok := config.Contexts[config.CurrentContext]
	if !ok {
		return nil, nil
	}
	info, ok := config.AuthInfos[current.AuthInfo]
	if !ok {
		return nil, nil
	}
	return info.ClientCertificateData, info.ClientKeyData
}
