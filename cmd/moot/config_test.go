package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"

	"github.com/mootkube/moot/node"
)

// loaded are the settings of a command line over a file.
func loaded(t *testing.T, file string, args ...string) options {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := options{Config: node.DefaultConfig()}
	opts.DataDir = dir
	flags := pflag.NewFlagSet("up", pflag.ContinueOnError)
	opts.addFlags(flags)
	if err := flags.Parse(append(args, "--config", path)); err != nil {
		t.Fatal(err)
	}
	if err := opts.load(flags); err != nil {
		t.Fatal(err)
	}
	return opts
}

func TestNumbersInTheFileStayAsTheyAre(t *testing.T) {
	opts := loaded(t, "node-name: 20261129\nport: 7444\nservice-xdp: true\n")
	if opts.NodeName != "20261129" || opts.Port != 7444 || !opts.ServiceXDP {
		t.Errorf("name %q, port %d, XDP %v", opts.NodeName, opts.Port, opts.ServiceXDP)
	}
}

func TestTokenOfTheCommandLineGoesFirst(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("new\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{"new": {"--token-file", token}, "given": {"--token", "given"}, "old": nil} {
		opts := loaded(t, "join: 192.0.2.10:7443\ntoken: old\n", args...)
		if err := opts.loadToken(); err != nil || opts.Token != want {
			t.Errorf("%q: token %q, %v", args, opts.Token, err)
		}
	}
	opts := loaded(t, "join: 192.0.2.10:7443\ntoken-file: "+token+"\n", "--token", "given")
	if err := opts.loadToken(); err != nil || opts.Token != "given" {
		t.Errorf("token %q, %v", opts.Token, err)
	}
}
