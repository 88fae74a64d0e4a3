package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/spf13/cobra"
)

// maxListed bounds the entries of one listing; it is held until it is printed.
const maxListed = 1 << 20

func (a *app) lunLsCommand() *cobra.Command {
	var from sourceFlags
	c := &cobra.Command{
		Use:   "ls SRC… VOLUME:PATH",
		Short: "List files in a volume, without mounting it",
		Long: `List a directory of the file system (ext2, ext3, ext4, xfs, btrfs, ntfs, fat) in a volume, or tell of a single file. A volume shows the files as they were when SRC
was split off; its snapshot shows them as they were at the snapshot.

Nothing is mounted: a process of its own, which may do nothing else, reads the file system. What a file system that was in use has only in its
journal counts, as it would after a mount, and XFS's log (version 5); NTFS, whose log is not replayed here, is refused unless it was unmounted. Of a running
Windows a shadow copy is read (VOLUME is vss1, vss2 …; "cleave lun inspect" lists them). PATH begins
with "/"; symbolic links are shown and not followed.`,
		Example: `  cleave lun ls disk.img vg/snap:/etc
  cleave lun ls a.img b.img 8RfV23-8Il5-oMwk-DYpQ-ieLK-Y8TD-BfAKuq:/
  cleave lun ls disk.qcow2 p1:/home -o json | jq '.entries[].name'`,
		Args: filesArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.sources(c.Context(), &from, args[:len(args)-1])
			if err != nil {
				return err
			}
			return a.withFiles(c.Context(), s, args[len(args)-1], func(f fs.FS, r fs.Ref, path string) error {
				list, err := listFiles(f, r, path)
				if err != nil && len(list) == 0 {
					return err
				}
				return errors.Join(a.print(filesResult(list)), err)
			})
		},
	}
	from.add(c.Flags())
	return c
}

// filesArgs wants a SRC, and VOLUME:PATH with after-1 arguments behind it.
func filesArgs(after int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < 1+after {
			return usagef("%s needs a SRC, and VOLUME:PATH as in vg/root:/etc", c.CommandPath())
		}
		if at := args[len(args)-after]; !strings.Contains(at, ":/") {
			return usagef("%.80q: want VOLUME:PATH with a path that begins with \"/\", as in vg/root:/etc", at)
		}
		return nil
	}
}

// withFiles opens the file system that VOLUME:PATH names, finds PATH, and closes
// all after fn.
func (a *app) withFiles(ctx context.Context, s LUNSources, at string, fn func(f fs.FS, r fs.Ref, path string) error) (err error) {
	volume, path, _ := strings.Cut(at, ":/")
	d, err := a.parts.OpenFiles(ctx, s, volume)
	if errors.Is(err, open.ErrNoFileSystem) {
		return hint(err, "`cleave lun inspect SRC` lists partitions and volumes, one of which may have it")
	}
	if err != nil {
		return lunError(err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	for _, w := range append(d.Warnings, d.FS.Info().Warnings...) {
		say(a.Err, "warning", w.Error())
	}
	r, err := fs.Find(d.FS, path)
	if err != nil {
		return hint(fmt.Errorf("%s: %w", at, err), "`cleave lun ls SRC %s:/` lists what is there", volume)
	}
	return fn(d.FS, r, path)
}

// listedFile is a file as lun ls prints it. Its JSON is stable.
type listedFile struct {
	Name     string    `json:"name"`
	Type     string    `json:"type"`
	Mode     string    `json:"mode"` // octal
	UID      uint32    `json:"uid"`
	GID      uint32    `json:"gid"`
	Links    uint32    `json:"links"`
	Size     int64     `json:"size"`      // bytes
	Held     int64     `json:"allocated"` // bytes on the device
	Modified time.Time `json:"modified,omitzero"`
	Inode    uint64    `json:"inode"`
	Target   string    `json:"target,omitempty"` // of a symbolic link
	Error    string    `json:"error,omitempty"`  // why the rest isn't known
}

func listFiles(f fs.FS, r fs.Ref, path string) ([]listedFile, error) {
	st, err := f.Stat(r)
	if err != nil {
		return nil, err
	}
	if st.Type != fs.Directory {
		return []listedFile{listed(f, path, st, nil)}, nil
	}
	var out []listedFile
	err = fs.ListStat(f, r, 0, func(e fs.Entry, st fs.Stat, err error) error {
		if len(out) == maxListed {
			return fmt.Errorf("the directory has more than %d entries", maxListed)
		}
		out = append(out, listed(f, e.Name, st, err))
		return nil
	})
	return out, err
}

func listed(f fs.FS, name string, st fs.Stat, err error) listedFile {
	if err != nil {
		return listedFile{Name: name, Error: err.Error()}
	}
	l := listedFile{Name: name, Type: st.Type.String(), Mode: fmt.Sprintf("%04o", st.Mode), UID: st.UID, GID: st.GID, Links: st.Links,
		Size: st.Size, Held: st.Allocated, Modified: st.Modified.UTC(), Inode: st.Ref.Inode}
	if st.Type == fs.Symlink {
		if l.Target, err = f.Readlink(st.Ref); err != nil {
			l.Error = err.Error()
		}
	}
	return l
}

func filesResult(list []listedFile) result {
	r := result{value: ordered{{"version", 1}, {"entries", some(list)}}}
	for _, l := range list {
		r.names = append(r.names, l.Name)
	}
	r.text = func(w io.Writer, p *paper) error {
		t := table{head: []string{"TYPE", "MODE", "LINKS", "UID", "GID", "SIZE", "MODIFIED", "+INODE", "NAME"}}
		for _, l := range list {
			name := printable(l.Name)
			if l.Target != "" {
				name += " -> " + printable(l.Target)
			}
			if l.Error != "" {
				name += " (" + printable(l.Error) + ")"
			}
			t.rows = append(t.rows, []string{l.Type, l.Mode, fmt.Sprint(l.Links), fmt.Sprint(l.UID), fmt.Sprint(l.GID), fmt.Sprint(l.Size),
				l.Modified.Format("2006-01-02 15:04:05"), fmt.Sprint(l.Inode), name})
		}
		p.draw(w, t)
		return nil
	}
	return r
}
