package fs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Find follows a path from the root: names separated by "/", of which leading,
// trailing and double ones don't count; "", "/" and "." are the root. ".." is
// ErrNotExist. A symbolic link is the end of a path and not followed: on
// the way it is ErrNotDir.
func Find(f FS, path string) (Ref, error) {
	r := f.Root()
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		next, err := Ref{}, ErrNotExist
		if GoodName(name) {
			next, err = f.Lookup(r, name)
		}
		if err != nil {
			return Ref{}, fmt.Errorf("%.200q: %w", path, err)
		}
		r = next
	}
	return r, nil
}

// SkipDir, returned by Walk's callback for a directory, leaves its content out.
var SkipDir = errors.New("skip this directory")

// Visit is what Walk tells of a file: its path below the start, "" for the
// start itself; how it is described; or the error because of which it isn't
// known, or a directory's content is not complete.
type Visit struct {
	Path string
	Stat Stat
	Err  error
}

// Walk calls fn for a file and, if it is a directory, for all that is below it,
// each directory before its content, in the order of the disk. What can't be
// read is handed to fn with its error, which goes on if fn returns nil. Any
// other error of fn ends it. A directory that can't be listed to its end is
// visited a second time, with the error.
//
// A directory that contains itself or nests deeper than MaxDepth is ErrTooDeep
// and not entered. Memory is bounded by the depth.
func Walk(f FS, start Ref, fn func(Visit) error) error {
	w := walk{f: f, fn: fn}
	st, err := f.Stat(start)
	return w.visit("", st, err)
}

type walk struct {
	f   FS
	fn  func(Visit) error
	way []Ref // directories from the start to here
}

func (w *walk) visit(path string, st Stat, err error) error {
	r := st.Ref
	if err == nil && st.Type == Directory && (len(w.way) >= MaxDepth || slices.Contains(w.way, r)) {
		err = ErrTooDeep
	}
	if ferr := w.fn(Visit{path, st, err}); ferr != nil {
		if errors.Is(ferr, SkipDir) && st.Type == Directory {
			return nil
		}
		return ferr
	}
	if err != nil || st.Type != Directory {
		return nil
	}
	w.way = append(w.way, r)
	defer func() { w.way = w.way[:len(w.way)-1] }()
	if path != "" {
		path += "/"
	}
	var own error // fn's, to be told from the list's
	err = ListStat(w.f, r, 0, func(e Entry, st Stat, err error) error {
		own = w.visit(path+e.Name, st, err)
		return own
	})
	if own != nil {
		return own
	}
	if err != nil {
		return w.fn(Visit{strings.TrimSuffix(path, "/"), st, err})
	}
	return nil
}
