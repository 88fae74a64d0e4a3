package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// store is a directory: NAME.raw are its volumes, snapshots/TAG@NAME.raw copies of
// them by reflink, each with its facts in a .json and, while it is exposed, a .lun.
type store struct {
	dir  string
	port int // of the first LUN
}

// A name ends no path and hides nothing.
var name = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

func (s store) file(id, suffix string) string {
	return filepath.Join(s.dir, "snapshots", id+suffix)
}

// lock keeps other processes out until over is called.
func (s store) lock() (over func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, os.MkdirAll(filepath.Join(s.dir, "snapshots"), 0o700)
}

// presentedAs is what the name of a target begins with that a volume is served as; the
// volume follows. Who serves it is the host's affair: gotgt answers nothing any more
// after an initiator's ping, and VMs have some every five seconds.
const presentedAs = "iqn.2016-04.org.example:volume."

func (s store) volume(v string) string { return filepath.Join(s.dir, v+".raw") }

func (s store) size(v string) (int64, error) {
	if !name.MatchString(v) {
		return 0, fail("not-found", "no volume is named %q", v)
	}
	fi, err := os.Stat(s.volume(v))
	if err != nil {
		return 0, fail("not-found", "%v", err)
	}
	return fi.Size(), nil
}

// resolve knows a volume by its path, or by the target that it is presented as.
func (s store) resolve(x args) (any, error) {
	p := x.Path
	if v, ok := strings.CutPrefix(x.IQN, presentedAs); ok && x.LUN == 1 {
		p = s.volume(v)
	}
	v, ok := strings.CutSuffix(filepath.Base(p), ".raw")
	size, err := s.size(v)
	if !ok || err != nil || p == "" {
		return nil, fail("not-mine", "%q is not one of this array's files", p)
	}
	a, err := os.Stat(p)
	if err != nil {
		return nil, fail("not-mine", "%v", err)
	}
	b, err := os.Stat(s.volume(v))
	if err != nil || !os.SameFile(a, b) {
		return nil, fail("not-mine", "%q is not one of this array's files", p)
	}
	return map[string]any{"id": v, "name": v, "size": size, "state": "Synchronized", "mirrors": 1}, nil
}

// find is a snapshot by its identifier.
func (s store) find(id string) (snapshot, error) {
	tag, v, _ := strings.Cut(id, "@")
	if !name.MatchString(tag) || !name.MatchString(v) {
		return snapshot{}, fail("not-found", "%q is no snapshot", id)
	}
	var x snapshot
	b, err := os.ReadFile(s.file(id, ".json"))
	if errors.Is(err, os.ErrNotExist) {
		return x, fail("not-found", "there is no snapshot %q", id)
	}
	if err == nil {
		err = json.Unmarshal(b, &x)
	}
	return x, err
}

// split copies a volume at one instant. The facts come last: without them there is
// no snapshot, and what a killed process has left is made anew.
func (s store) split(tag, v string) (any, error) {
	size, err := s.size(v)
	if err != nil {
		return nil, err
	}
	x := snapshot{ID: tag + "@" + v, Tag: tag, Volume: v, Size: size, Method: "array-snapshot", State: "Synchronized", At: time.Now().UTC()}
	switch old, err := s.find(x.ID); {
	case err == nil:
		return []snapshot{old}, nil
	case !name.MatchString(tag):
		return nil, fail("invalid-request", "tag %q", tag)
	}
	if err := clone(s.file(x.ID, ".raw"), s.volume(v)); err != nil {
		return nil, fail("no-space", "%s can't be copied by reflink: %v", v, err)
	}
	return []snapshot{x}, s.write(x)
}

// clone makes to a copy of from, by reflink, durable.
func clone(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())), dst.Sync(), dst.Close())
}

// write replaces a snapshot's facts, durably.
func (s store) write(x snapshot) error {
	b, err := json.Marshal(x)
	if err == nil {
		err = replace(s.file(x.ID, ".json"), b)
	}
	return err
}

func replace(file string, b []byte) error {
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	return syncDir(filepath.Dir(file))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lookup lists what carries a tag.
func (s store) lookup(tag string) (any, error) {
	out := []snapshot{}
	if !name.MatchString(tag) {
		return out, nil
	}
	all, err := filepath.Glob(s.file(tag+"@*", ".json"))
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		x, err := s.find(strings.TrimSuffix(filepath.Base(f), ".json"))
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

// delete takes the facts away first: then it is gone.
func (s store) delete(id string) error {
	if _, err := s.find(id); err != nil {
		return err
	}
	if _, err := s.exposed(id); err == nil {
		return fail("busy", "%s is exposed", id)
	}
	if inUse(s.file(id, ".raw")) {
		return fail("busy", "%s is open", id)
	}
	if err := errors.Join(os.Remove(s.file(id, ".json")), syncDir(filepath.Dir(s.file(id, "")))); err != nil {
		return err
	}
	return errors.Join(gone(os.Remove(s.file(id, ".raw"))), gone(os.Remove(s.file(id, ".lun"))))
}

func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// inUse reports whether somebody holds a lock on a file.
func inUse(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}
