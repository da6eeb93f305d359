package store

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// copyDir copies the files of a store at rest, as a kill leaves them.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// killed returns a directory of a store that was killed after n puts of
// distinct keys, all acknowledged.
func killed(t *testing.T, n int) Config {
	t.Helper()
	cfg := testConfig(t)
	cfg.MemTableBytes = 64 << 10
	s, _ := start(t, cfg)
	for i := range n {
		put(t, s, fmt.Sprintf("/a/%04d", i), strings.Repeat(fmt.Sprint(i, " "), 100))
	}
	cfg.Dir = copyDir(t, cfg.Dir)
	return cfg
}

func storeFiles(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "LOCK" {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestDamage spoils each file in turn. The store must either say so in one
// line, or serve everything that was acknowledged.
func TestDamage(t *testing.T) {
	const n = 300
	cfg := killed(t, n)
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	kinds := map[string]func(b []byte) []byte{
		"garbage": func(b []byte) []byte {
			at := rng.IntN(len(b))
			for i := at; i < min(at+64, len(b)); i++ {
				b[i] = byte(rng.Uint32())
			}
			return b
		},
		"bit": func(b []byte) []byte {
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
			return b
		},
		"zeros": func(b []byte) []byte {
			at := rng.IntN(len(b))
			clear(b[at:min(at+4096, len(b))])
			return b
		},
		"cut":   func(b []byte) []byte { return b[:rng.IntN(len(b))] },
		"empty": func([]byte) []byte { return []byte{} },
		"gone":  func([]byte) []byte { return nil },
	}
	for _, file := range storeFiles(t, cfg.Dir) {
		for kind, spoil := range kinds {
			name := filepath.Base(file)
			t.Run(name+"/"+kind, func(t *testing.T) {
				damaged := cfg
				damaged.Dir = copyDir(t, cfg.Dir)
				rel, err := filepath.Rel(cfg.Dir, file)
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(damaged.Dir, rel)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if len(b) == 0 && kind != "gone" {
					return
				}
				if b = spoil(b); b == nil {
					err = os.Remove(path)
				} else {
					err = os.WriteFile(path, b, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				before := storeFiles(t, damaged.Dir)
				checkDamaged(t, damaged, n, before)
			})
		}
	}
}

func checkDamaged(t *testing.T, cfg Config, n int, files []string) {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		if !errors.Is(err, ErrDamaged) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), cfg.Dir) {
			t.Errorf("error is not one line that names the directory: %v", err)
		}
		if _, again := Open(cfg); !errors.Is(again, ErrDamaged) {
			t.Errorf("second try: %v, after %v", again, err)
		}
		now := storeFiles(t, cfg.Dir)
		for _, file := range files {
			holds := strings.HasSuffix(file, ".sst") || strings.HasSuffix(file, ".log") || strings.HasPrefix(filepath.Base(file), "MANIFEST-")
			if holds && !slices.Contains(now, file) {
				t.Errorf("%s was deleted, after %v", file, err)
			}
		}
		return
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Log("close:", err)
		}
	}()
	lost := 0
	for i := range n {
		res, err := s.Range(t.Context(), RangeRequest{Key: fmt.Appendf(nil, "/a/%04d", i)})
		if errors.Is(err, ErrDamaged) {
			continue
		}
		if err != nil || len(res.KVs) == 0 || string(res.KVs[0].Value) != strings.Repeat(fmt.Sprint(i, " "), 100) {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d keys were lost without a word", lost, n)
	}
}
