package mount

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/fs"
)

const helperEnv = "CLEAVE_TEST_MOUNT_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		_ = os.WriteFile(os.Getenv(helperEnv), []byte(strconv.Itoa(os.Getpid())), 0o600)
		os.Exit(Main(os.Stdin, os.Stdout, os.Stderr, func(context.Context, json.RawMessage) (Opened, error) {
			return Opened{FS: hello{}, Closer: io.NopCloser(nil)}, nil
		}))
	}
	os.Exit(m.Run())
}

// hello is a file system of one file.
type hello struct{}

var rootRef, fileRef = fs.Ref{Inode: 2}, fs.Ref{Inode: 12}

func (hello) Info() fs.Info { return fs.Info{BlockSize: 4096} }
func (hello) Root() fs.Ref  { return rootRef }

func (hello) Stat(r fs.Ref) (fs.Stat, error) {
	if r == rootRef {
		return fs.Stat{Ref: r, Type: fs.Directory, Mode: 0o755, Links: 2}, nil
	}
	return fs.Stat{Ref: r, Type: fs.Regular, Mode: 0o640, UID: 7, Links: 1, Size: 5, Modified: time.Unix(-5, 7)}, nil
}

func (hello) Lookup(_ fs.Ref, name string) (fs.Ref, error) {
	if name != "file" {
		return fs.Ref{}, fs.ErrNotExist
	}
	return fileRef, nil
}

func (hello) List(_ fs.Ref, after uint64, fn func(fs.Entry) error) error {
	if after > 0 {
		return nil
	}
	return fn(fs.Entry{Name: "file", Ref: fileRef, Type: fs.Regular, Next: 1})
}

func (hello) Open(fs.Ref) (fs.File, error)    { return content{strings.NewReader("hello")}, nil }
func (hello) Readlink(fs.Ref) (string, error) { return "", fs.ErrNotLink }
func (hello) Xattrs(_ fs.Ref, fn func(string, []byte) error) error {
	return fn("user.x", []byte("value"))
}

type content struct{ *strings.Reader }

func (content) Extents(off, n int64, fn func(fs.Extent) error) error {
	return fn(fs.Extent{Off: off, Len: min(n, 5-off)})
}

// started mounts hello, and returns where and the process behind it.
func started(t *testing.T) (dir string, pid int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: mounting needs it")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	dir = filepath.Join(t.TempDir(), "a,b c")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	note := filepath.Join(t.TempDir(), "pid")
	t.Setenv(helperEnv, note)
	if _, err := Start(t.Context(), []string{"/proc/self/exe"}, Request{Dir: dir, Source: "test", Open: json.RawMessage("{}")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Stop(dir); err != nil {
			t.Error(err)
		}
	})
	b, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	pid, err = strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	return dir, pid
}

// gone waits until the process has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); unix.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the process behind the mount lives on")
		}
	}
}

func TestMount(t *testing.T) {
	dir, pid := started(t)
	path := filepath.Join(dir, "file")
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Uid != 7 || st.Mode != unix.S_IFREG|0o640 || st.Mtim.Sec != -5 || st.Mtim.Nsec != 7 {
		t.Errorf("stat: %+v, %v", st, err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if string(b) != "hello" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	value := make([]byte, 10)
	if n, err := unix.Getxattr(path, "user.x", value); err != nil || string(value[:n]) != "value" {
		t.Errorf("attribute: %q, %v", value, err)
	}
	if err := Stop(dir); !errors.Is(err, ErrBusy) {
		t.Errorf("unmounting while a file is open: %v", err)
	}
	if err := errors.Join(f.Close(), Stop(dir), Stop(dir)); err != nil {
		t.Error(err)
	}
	gone(t, pid)
}

func TestKilled(t *testing.T) {
	dir, pid := started(t)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	if _, err := os.ReadDir(dir); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("reading it: %v", err)
	}
	// Another one takes its place.
	if _, err := Start(t.Context(), []string{"/proc/self/exe"}, Request{Dir: dir, Source: "test", Open: json.RawMessage("{}")}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}
