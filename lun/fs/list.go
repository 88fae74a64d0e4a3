package fs

import "errors"

// StatLister is an FS that describes files faster while it lists them.
type StatLister interface {
	// ListStat is List with a Stat of each entry, or why there is none.
	ListStat(dir Ref, after uint64, fn func(Entry, Stat, error) error) error
}

// ListStat lists a directory with a Stat of each entry; see FS.List.
func ListStat(f FS, dir Ref, after uint64, fn func(Entry, Stat, error) error) error {
	if l, ok := f.(StatLister); ok {
		return l.ListStat(dir, after, fn)
	}
	return f.List(dir, after, func(e Entry) error {
		st, err := f.Stat(e.Ref)
		return fn(e, st, err)
	})
}

var errFound = errors.New("found")

// Search looks for a name by listing its directory; see FS.Lookup. If it isn't there,
// the error is ErrNotExist.
func Search(f FS, dir Ref, name string) (found Ref, err error) {
	err = f.List(dir, 0, func(e Entry) error {
		if e.Name == name {
			found = e.Ref
			return errFound
		}
		return nil
	})
	switch err {
	case errFound:
		return found, nil
	case nil:
		return Ref{}, ErrNotExist
	}
	return Ref{}, err
}
