package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

func (a *app) mirrorSplitCommand() *cobra.Command {
	var tag string
	var allow bool
	c := &cobra.Command{
		Use:   "split VOLUME… --tag TAG",
		Short: "Split a mirror off each volume, all at one instant",
		Long: `Split a mirror off each volume, all at one instant in the order of writes. It
waits until the mirrors are in sync; nothing is held meanwhile. The splits are
as after a power cut: no guest is told.

The tag finds them again: a command repeated with it returns the same splits.
Tags that begin with "set-" or "safe-" belong to snapshot sets and safe points.

A volume of two mirrors runs on one until the split is back (cleave mirror
resync) or replaced (mirror delete, then mirror repair), which needs consent.`,
		Example: `  cleave mirror split db log --tag before-upgrade --allow-unmirrored
  MONDAY=$(cleave mirror split db --tag monday -o name)`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if strings.HasPrefix(tag, "set-") || strings.HasPrefix(tag, "safe-") {
				return usagef("--tag %.63s: tags that begin so belong to snapshot sets and safe points", tag)
			}
			return a.withStorage(func(s Storage) error {
				ss, err := s.SplitVolumes(c.Context(), tag, args, allow)
				if err != nil {
					return splitHint(err)
				}
				return a.print(splitsResult(ss))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&tag, "tag", "", "name for the splits, of a-z, 0-9 and - (required)")
	f.BoolVar(&allow, "allow-unmirrored", false, "consent to production running on one copy until the resync")
	if err := c.MarkFlagRequired("tag"); err != nil {
		panic(err) // a flag that is not there: a slip in this function
	}
	return c
}

// splitHint adds what to try next where splitting was refused.
func splitHint(err error) error {
	switch arrays.KindOf(err) {
	case driver.NeedsConsent:
		return hint(err, "--allow-unmirrored consents to production running on one copy until the resync")
	case driver.Busy:
		return hint(err, "`cleave mirror status` lists the splits that there are")
	case driver.OutcomeUnknown:
		return hint(err, "run it again with the same tag: what was split is not split twice")
	}
	return err
}

// partHint adds what to try next where a split could not be dealt with.
func partHint(err error) error {
	switch arrays.KindOf(err) {
	case driver.NotFound:
		return hint(err, "`cleave mirror status` lists volumes and splits")
	case driver.Busy:
		return hint(err, "shut down the VMs that use it, then `cleave volume unexpose`; `cleave mirror status -o wide` shows who uses a split")
	case driver.OutcomeUnknown:
		return hint(err, "`cleave mirror status` shows what was done; what was is not done twice")
	}
	return err
}

func (a *app) mirrorResyncCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resync SPLIT",
		Short: "Put a split back under its volume as a mirror",
		Long: `Put a split, named by its ID as mirror status lists it, back under its volume.
Only what changed on either side is copied, from the volume. The split is gone,
with what was written to it, and there is no way back; mirror revert and mirror
reverse copy the other way. The command returns when the copying has begun.

Splits that belong to a snapshot set are given back by cleave snapshot delete.`,
		Example: `  cleave mirror resync 0b6c5c3a-0f5e-4d0e-8a52-6c1a9d3f3c77`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				if err := s.Resync(c.Context(), args[0]); err != nil {
					return partHint(err)
				}
				_, err := fmt.Fprintln(a.Out, args[0])
				return err
			})
		},
	}
}

func (a *app) mirrorDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "delete SPLIT",
		Short: "Delete a split and its file",
		Long: `Delete a split, named by its ID, and its file. There is no way back. Its volume
wants a mirror in its place, which cleave mirror repair makes and fills anew;
mirror resync copies only what changed.

Splits that belong to a snapshot set are given back by cleave snapshot delete.`,
		Example: `  cleave mirror delete 0b6c5c3a-0f5e-4d0e-8a52-6c1a9d3f3c77`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				if err := s.DeleteSplit(c.Context(), args[0]); err != nil {
					return partHint(err)
				}
				_, err := fmt.Fprintln(a.Out, args[0])
				return err
			})
		},
	}
}
