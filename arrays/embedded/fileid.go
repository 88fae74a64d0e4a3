package embedded

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// What becomes of a mirror whose file is not the one that its record tells of,
// when files are opened:
//
//	the file is another mirror's      it is never used: it is another volume's data
//	another mirror is the right one   it is dropped; a new one takes its place, or
//	                                  the old file once it is put back
//	none of the volume's is           all are used, as they must be after a restore
//	                                  or when a pool was copied to a new disk, and
//	                                  compared in full, from the one written last
//
// A file is never removed for a mirror that it does not belong to.

// errExchanged says that a file is another mirror's, errReplaced that nobody
// knows it. In both cases the mirror's own is away.
var (
	errExchanged = fmt.Errorf("mirrors' files were exchanged: put each back under its own name: %w", errAway)
	errReplaced  = fmt.Errorf("it is not the file that was the mirror: %w", errAway)
)

// fileID tells a file from another that later has its name: its inode number,
// and when it was made. It is empty where the file system does not say; one that
// is not the kernel's says so by a method ID.
func fileID(f disk.File) string {
	if f, ok := f.(interface{ ID() string }); ok {
		return f.ID()
	}
	if f.OS() == nil {
		return ""
	}
	var st unix.Statx_t
	const want = unix.STATX_INO | unix.STATX_BTIME
	err := unix.Statx(int(f.OS().Fd()), "", unix.AT_EMPTY_PATH, want, &st)
	if err != nil || st.Mask&want != want {
		return ""
	}
	return fmt.Sprintf("%d-%d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec)
}

// strange is nil if p is m's file, as far as that can be told. Two mirrors in
// sync of one volume may have each other's.
func (a *Array) strange(m *mirrorRecord, p *plex) error {
	is := fileID(p.f)
	if m.FileID == "" || is == "" || is == m.FileID {
		return nil
	}
	switch owner, equal := a.store.read().ownerOf(is, m); {
	case equal:
		return nil
	case owner != "":
		return fmt.Errorf("%s is the file of %s: %w", p.path, owner, errExchanged)
	}
	return fmt.Errorf("%s: %w", p.path, errReplaced)
}

// ownerOf names the mirror whose file has the ID. equal: m and it are mirrors in
// sync of one volume.
func (c *catalog) ownerOf(id string, m *mirrorRecord) (owner string, equal bool) {
	for i := range c.Volumes {
		v := &c.Volumes[i]
		for _, o := range v.Mirrors {
			if o.FileID == id && o.ID != m.ID {
				self := v.mirror(m.ID)
				return fmt.Sprintf("mirror %s of volume %q", o.ID, v.Name), self != nil && self.State == inSync && o.State == inSync
			}
		}
	}
	for _, s := range c.Snapshots {
		if s.Mirror.FileID == id && s.Mirror.ID != m.ID {
			return fmt.Sprintf("snapshot %s of volume %q", s.ID, s.VolumeName), false
		}
	}
	return "", false
}

// vet moves files that are not to be trusted from e to failed, and reports
// whether those that are left have to be compared in full.
func (v *volume) vet(r *volumeRecord, e *epoch0, failed map[lun.Identity]error) (compare bool) {
	odd := map[*plex]error{}
	ours := 0
	for _, p := range slices.Concat(e.insync, e.filling) {
		if err := v.a.strange(r.mirror(p.id), p); err != nil {
			odd[p] = err
		} else if slices.Contains(e.insync, p) {
			ours++
		}
	}
	reject := func(p *plex) bool {
		err := odd[p]
		if err == nil || ours == 0 && !errors.Is(err, errExchanged) {
			return false
		}
		failed[p.id] = err
		p.f.Close()
		return true
	}
	e.insync = slices.DeleteFunc(slices.Clone(e.insync), reject)
	e.filling = slices.DeleteFunc(slices.Clone(e.filling), reject)
	accepted := slices.DeleteFunc(slices.Clone(e.insync), func(p *plex) bool { return odd[p] == nil })
	if len(accepted) == 0 {
		return false
	}
	newestFirst(r, e)
	what := "it is used as it is"
	if compare = len(e.insync)+len(e.filling) > 1; compare {
		what = fmt.Sprintf("they are used as they are, and all is compared and made equal to mirror %s in pool %q", e.insync[0].id, e.insync[0].pool)
	}
	v.a.event(FileReplaced, v, e.insync[0].id, "%s: none of its mirrors' files is the one that was recorded, as after a restore or when a pool was copied: %s", v.label, what)
	return compare
}

func modified(p *plex) time.Time {
	fi, err := p.f.Stat()
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}

// newestFirst puts a mirror first, in the record too, that was still written to
// when the one that is first no longer was.
func newestFirst(r *volumeRecord, e *epoch0) {
	first := 0
	newest := modified(e.insync[0])
	for i, p := range e.insync {
		if at := modified(p); at.Sub(newest) > staleAfter {
			first, newest = i, at
		}
	}
	p := e.insync[first]
	e.insync = slices.Insert(without(e.insync, p), 0, p)
	i := slices.IndexFunc(r.Mirrors, func(m mirrorRecord) bool { return m.ID == p.id })
	m := r.Mirrors[i]
	r.Mirrors = slices.Insert(slices.Delete(r.Mirrors, i, i+1), 0, m)
}

// tellDropped says why the volume comes up without a mirror.
func (v *volume) tellDropped(m *mirrorRecord, err error) {
	if errors.Is(err, errExchanged) || errors.Is(err, errReplaced) {
		v.a.event(FileReplaced, v, m.ID, "%s lost its mirror %s in pool %q: %v; it goes on with the others: put the file back, or have the volume's mirrors repaired", v.label, m.ID, m.Pool, err)
		return
	}
	v.a.event(MirrorDropped, v, m.ID, "%s lost its mirror %s in pool %q: %v; it goes on with the others", v.label, m.ID, m.Pool, err)
}

// openSplit opens a snapshot's file. One that is another mirror's is refused; one
// that nobody knows is used, since there is no other.
func (a *Array) openSplit(m *mirrorRecord, size int64, flag int) (*plex, error) {
	p, err := a.openPlex(m, size, flag)
	if err != nil {
		return nil, err
	}
	switch err := a.strange(m, p); {
	case errors.Is(err, errExchanged):
		p.f.Close()
		return nil, err
	case err != nil:
		a.event(FileReplaced, nil, m.ID, "a split's file: %v; it is used as it is", err)
	}
	m.FileID = fileID(p.f)
	return p, nil
}

// removable are a mirror's files that may be removed with it: not one that has
// come to lie under its name and may be another's only copy.
func (a *Array) removable(m *mirrorRecord) []fileRef {
	files := m.files()
	f, err := a.fs.OpenFile(a.poolPath(m.Pool, m.File), os.O_RDONLY)
	if err != nil {
		return files
	}
	defer f.Close()
	if id := fileID(f); m.FileID == "" || id == "" || id == m.FileID {
		return files
	}
	a.event(LeftOver, nil, m.ID, "%s stays though mirror %s is removed: it is not the file that was the mirror", f.Name(), m.ID)
	return files[1:] // the label
}

func (a *Array) removableOf(r *volumeRecord) []fileRef {
	out := []fileRef{}
	for i := range r.Mirrors {
		out = append(out, a.removable(&r.Mirrors[i])...)
	}
	return out
}
