package sched

import (
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
)

// serverName is what the API server's certificate is checked against: the
// gate's address is not in it.
const serverName = "localhost"

// termKubeconfig writes a copy of the kubeconfig at source whose server is the
// gate, and returns its path.
func (t *term) termKubeconfig(source, name string) (string, error) {
	config, err := clientcmd.LoadFromFile(source)
	if err != nil {
		return "", fmt.Errorf("load kubeconfig %s: %w", source, err)
	}
	for _, cluster := range config.Clusters {
		cluster.Server = t.gate.url()
		cluster.TLSServerName = serverName
	}
	data, err := clientcmd.Write(*config)
	if err != nil {
		return "", fmt.Errorf("encode kubeconfig of %s: %w", name, err)
	}
	return t.write(name+".kubeconfig", data)
}

// write puts data into a file of the term.
func (t *term) write(name string, data []byte) (string, error) {
	path := filepath.Join(t.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", fmt.Errorf("write file of the term: %w", err)
	}
	return path, nil
}
