package fs

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
