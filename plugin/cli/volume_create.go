package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) volumeCreateCommand() *cobra.Command {
	var sizeFlag string
	var pools []string
	var mirrors int
	var snapshots string
	c := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Make a volume with two or more mirrors",
		Long: `Make a volume. Its mirrors are sparse files, one in each pool named by --pool;
without --pool those with the most free space are taken. A new volume reads as
zeroes and its mirrors are in sync at once.

--snapshots says what a split takes: "mirror" a mirror, which is a copy on a disk
of its own and leaves the volume one fewer until the resync; "reflink" a clone
within one mirror's pool, whose file system must have reflinks (XFS, Btrfs), and
which holds writes for some milliseconds; "auto" a mirror where one can be
spared, and a clone otherwise.`,
		Example: `  cleave volume create db --size 20GiB
  cleave volume create db --size 20GiB --pool a --pool b --pool c`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := parseSize(sizeFlag)
			if err != nil {
				return err
			}
			if n <= 0 || n%512 != 0 {
				return usagef("--size %s: want a positive multiple of 512 bytes", sizeFlag)
			}
			if err := checkPolicy(snapshots); err != nil {
				return err
			}
			return a.withStorage(func(s Storage) error {
				if len(pools) == 0 {
					if pools, err = roomiest(c.Context(), s, mirrors); err != nil {
						return err
					}
				}
				v, err := s.CreateVolume(c.Context(), args[0], n, pools, snapshots)
				if err != nil {
					return err
				}
				return a.print(volumeResult(v))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&sizeFlag, "size", "", "size, as in 512MiB or 20GiB; a number alone is bytes (required)")
	f.StringArrayVar(&pools, "pool", nil, "pool for a mirror; repeat it for each mirror")
	f.IntVar(&mirrors, "mirrors", 2, "how many mirrors, where no pool is named")
	f.StringVar(&snapshots, "snapshots", "mirror", "what a split takes: mirror, reflink or auto")
	c.MarkFlagsMutuallyExclusive("pool", "mirrors")
	if err := c.MarkFlagRequired("size"); err != nil {
		panic(err) // a flag that is not there: a slip in this function
	}
	return c
}

// roomiest picks n pools, those with the most free space first.
func roomiest(ctx context.Context, s Storage, n int) ([]string, error) {
	pools, err := s.Pools(ctx)
	if err != nil {
		return nil, err
	}
	if n < 1 {
		return nil, usagef("--mirrors %d: want at least 1", n)
	}
	all, why := len(pools), []string{}
	if all < n {
		return nil, hint(usagef("%d mirrors asked, but the array has %d pools", n, all),
			"add pools to `cleave array`, or name one twice by --pool, which protects against no lost disk")
	}
	pools = slices.DeleteFunc(pools, func(p Pool) bool {
		if p.Reason != "" {
			why = append(why, p.Reason)
		}
		return p.Reason != ""
	})
	if len(pools) < n {
		return nil, hint(fmt.Errorf("%d mirrors asked, but only %d of the array's %d pools can be used: %s", n, len(pools), all, strings.Join(why, "; ")),
			"free space in the pool, or bring it back; `cleave doctor` lists the pools")
	}
	slices.SortStableFunc(pools, func(a, b Pool) int { return cmp.Compare(b.Free, a.Free) })
	var names []string
	for _, p := range pools[:n] {
		names = append(names, p.Name)
	}
	return names, nil
}
