package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/node/backup"
	"github.com/mootkube/moot/node/pki/rotation"
)

// Client asks the daemon on this machine.
type Client struct {
	Socket string // [Config.StatusSocket]
}

// stopWithin is more than the parts of a daemon take to stop together.
const stopWithin = 2 * time.Minute

// AwaitStop waits until no daemon works on the data directory any more.
func AwaitStop(ctx context.Context, dataDir string) error {
	ctx, cancel := context.WithTimeout(ctx, stopWithin)
	defer cancel()
	for {
		if _, err := os.Stat(dataDir); err != nil {
			return nil // the daemon was told another one
		}
		unlock, err := lockDir(dataDir)
		if err == nil {
			unlock()
			return nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return fmt.Errorf("wait for the daemon to end: %w", err)
		}
	}
}

// CreateToken makes a join token.
func (c Client) CreateToken(ctx context.Context, want NewToken) (CreatedToken, error) {
	var made CreatedToken
	return made, c.ask(ctx, http.MethodPost, "/tokens", want, &made)
}

// Tokens lists the join tokens, without their secrets.
func (c Client) Tokens(ctx context.Context) ([]ListedToken, error) {
	var list []ListedToken
	return list, c.ask(ctx, http.MethodGet, "/tokens", nil, &list)
}

// RevokeToken makes a join token useless.
func (c Client) RevokeToken(ctx context.Context, id string) error {
	return c.ask(ctx, http.MethodDelete, "/tokens/"+url.PathEscape(id), nil, nil)
}

// Conflicts lists what merges of concurrent changes did not keep.
func (c Client) Conflicts(ctx context.Context) ([]Conflict, error) {
	var list []Conflict
	return list, c.ask(ctx, http.MethodGet, "/conflicts", nil, &list)
}

// RotateKeys begins a rotation of the members' keys.
func (c Client) RotateKeys(ctx context.Context) (rotation.Status, error) {
	var s rotation.Status
	return s, c.ask(ctx, http.MethodPost, "/keys/rotation", nil, &s)
}

// Rotation tells how far the last rotation is.
func (c Client) Rotation(ctx context.Context) (rotation.Status, error) {
	var s rotation.Status
	return s, c.ask(ctx, http.MethodGet, "/keys/rotation", nil, &s)
}

// Leave takes this node out of the cluster; the daemon ends after it.
func (c Client) Leave(ctx context.Context, say func(string)) error {
	return c.follow(ctx, http.MethodPost, "/leave", nil, say)
}

// Remove takes a dead member out of the cluster.
func (c Client) Remove(ctx context.Context, name string, say func(string)) error {
	return c.follow(ctx, http.MethodDelete, "/members/"+url.PathEscape(name), nil, say)
}

// Restore brings a backup into the living cluster, as new writes.
func (c Client) Restore(ctx context.Context, path string, dry bool, say func(string)) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open backup: %w", err)
	}
	defer file.Close() //nolint:errcheck // it was only read
	query := ""
	if dry {
		query = "?dry-run=true"
	}
	return c.follow(ctx, http.MethodPost, "/restore"+query, file, say)
}

// Backup writes a backup of the cluster to path, which must not exist, for the
// owner alone. progress is told how many bytes were written.
func (c Client) Backup(ctx context.Context, path string, progress func(int64)) (backup.Summary, error) {
	if _, err := os.Lstat(path); err == nil {
		return backup.Summary{}, fmt.Errorf("write %s: it exists already; choose another name", path)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return backup.Summary{}, fmt.Errorf("write backup: %w", err)
	}
	summary, err := c.fetchBackup(ctx, file, progress)
	err = errors.Join(err, file.Close())
	if err == nil {
		if err = giveName(file.Name(), path, os.Link); errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("write %s: it exists already; choose another name", path)
		}
	}
	if removeErr := os.Remove(file.Name()); !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return summary, err
}

// giveName makes a file known by another name unless something has it. It may
// still have the old one then.
func giveName(path, name string, link func(path, name string) error) error {
	err := link(path, name)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EOPNOTSUPP) { // FAT has no links, for one
		err = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (c Client) fetchBackup(ctx context.Context, file *os.File, progress func(int64)) (backup.Summary, error) {
	resp, err := c.do(ctx, http.MethodGet, "/backup", nil)
	if err != nil {
		return backup.Summary{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // it has been read, or its error returned
	_, err = io.Copy(file, &counted{in: resp.Body, tell: progress})
	if cause := resp.Trailer.Get(backupTrailer); cause != "" {
		return backup.Summary{}, fmt.Errorf("write backup: %s", cause)
	}
	if err != nil {
		return backup.Summary{}, fmt.Errorf("write backup: %w", err)
	}
	if err := file.Sync(); err != nil {
		return backup.Summary{}, fmt.Errorf("write backup: %w", err)
	}
	// What is on disk is read back: a backup that cannot be read is none.
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return backup.Summary{}, fmt.Errorf("check backup: %w", err)
	}
	return backup.Verify(file)
}

// counted tells how many bytes went by.
type counted struct {
	in   io.Reader
	tell func(int64)
	n    int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.n += int64(n)
	c.tell(c.n)
	return n, err
}

// ask sends one request and reads the answer into out, unless that is nil.
func (c Client) ask(ctx context.Context, method, path string, body, out any) error {
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		in = bytes.NewReader(data)
	}
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // the answer has been read, or its error returned
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// follow sends one request and passes on its steps until it is done.
func (c Client) follow(ctx context.Context, method, path string, body io.Reader, say func(string)) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it has been read, or its error returned
	steps := json.NewDecoder(resp.Body)
	for {
		var s step
		switch err := steps.Decode(&s); {
		case err != nil:
			return fmt.Errorf("the daemon ended before it was done: %w", err)
		case s.Error != "":
			return errors.New(s.Error)
		case s.Done:
			return nil
		}
		say(s.Say)
	}
}

// do returns an answer that is a success.
func (c Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://moot"+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNotRunning
	case errors.Is(err, fs.ErrPermission):
		return nil, errors.New("not allowed to ask the daemon; run it with sudo")
	case err != nil:
		return nil, fmt.Errorf("ask the daemon: %w", err)
	case resp.StatusCode == http.StatusOK:
		return resp, nil
	}
	defer resp.Body.Close() //nolint:errcheck // it is an error already
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var p problem
	if err == nil && json.Unmarshal(text, &p) == nil && p.Error != "" {
		return nil, errors.New(p.Error)
	}
	return nil, fmt.Errorf("ask the daemon: %s: %s", resp.Status, bytes.TrimSpace(text))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
