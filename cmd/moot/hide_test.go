package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestHideToken runs itself with a secret, as only the arguments that the kernel
// gave may be written to. Another argument has it as a part.
func TestHideToken(t *testing.T) {
	const secret, env = "0a1b2c", "MOOT_TEST_HIDE"
	for _, form := range [][]string{{"--token=" + secret}, {"--token", secret}} {
		if os.Getenv(env) != "" {
			break
		}
		args := append([]string{"-test.run=^TestHideToken$", "--", "--data-dir=/srv/" + secret}, form...)
		cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
		cmd.Env = append(os.Environ(), env+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	if os.Getenv(env) == "" {
		return
	}
	last := os.Args[len(os.Args)-1]
	if kept := hideToken(os.Args, strings.TrimPrefix(last, "--token=")); kept != secret {
		t.Errorf("kept %q", kept)
	}
	shown, err := os.ReadFile("/proc/self/cmdline")
	if err != nil || !bytes.HasSuffix(shown, []byte("xxxxxx\x00")) || !bytes.Contains(shown, []byte("--data-dir=/srv/"+secret)) {
		t.Errorf("the process list has %q, %v", shown, err)
	}
}
