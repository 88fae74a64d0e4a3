package remote

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Arm implements driver.Armer.
func (c *Client) Arm(ctx context.Context, tag driver.Tag, vs []driver.VolumeID, abortAfter time.Duration) error {
	return c.call(ctx, fmt.Sprintf("arming %d volumes under tag %q", len(vs), tag), http.MethodPost, "/arm", ArmRequest{tag, vs, abortAfter}, nil)
}

// Commit implements driver.Armer.
func (c *Client) Commit(ctx context.Context, tag driver.Tag) (ss []driver.Snapshot, err error) {
	what := fmt.Sprintf("committing tag %q", tag)
	if err := c.call(ctx, what, http.MethodPost, "/commit", TagRequest{tag}, &ss); err != nil {
		return nil, err
	}
	if len(ss) == 0 {
		return nil, driver.Errorf(driver.OutcomeUnknown, "%s: data plane answered with no snapshots", what)
	}
	return ss, nil
}

// Abort implements driver.Armer.
func (c *Client) Abort(ctx context.Context, tag driver.Tag) error {
	return c.call(ctx, fmt.Sprintf("aborting tag %q", tag), http.MethodPost, "/abort", TagRequest{tag}, nil)
}

// Revert implements driver.Reverter.
func (c *Client) Revert(ctx context.Context, s driver.SnapshotID) (safe driver.Snapshot, err error) {
	err = c.call(ctx, fmt.Sprintf("reverting to snapshot %s", s), http.MethodPost, "/snapshots/"+esc(s)+"/revert", nil, &safe)
	return safe, err
}

// Reverse exchanges the contents of a volume and a split of it. What the volume
// held is the snapshot returned, with the tag of the one that is used up.
func (c *Client) Reverse(ctx context.Context, s driver.SnapshotID) (other driver.Snapshot, err error) {
	err = c.call(ctx, fmt.Sprintf("reversing snapshot %s", s), http.MethodPost, "/snapshots/"+esc(s)+"/reverse", nil, &other)
	return other, err
}

// Break implements driver.Breaker.
func (c *Client) Break(ctx context.Context, s driver.SnapshotID, name string) (v driver.Volume, err error) {
	err = c.call(ctx, fmt.Sprintf("breaking snapshot %s off as %q", s, name), http.MethodPost, "/snapshots/"+esc(s)+"/break", BreakRequest{name}, &v)
	return v, err
}

// Changes implements driver.ChangeTracker.
func (c *Client) Changes(ctx context.Context, v driver.VolumeID, from, to driver.SnapshotID) (ch driver.Changes, err error) {
	err = c.ask(ctx, fmt.Sprintf("comparing points of volume %s", v), "/volumes/"+esc(v)+"/changes", ChangesRequest{from, to}, &ch)
	return ch, err
}

// PresentedTo implements driver.Presenter, by the masks of the volume's LUN.
func (c *Client) PresentedTo(ctx context.Context, v driver.VolumeID) (names []string, err error) {
	ms, err := c.Masks(ctx)
	for _, m := range ms {
		if m.Kind == "volume" && m.Of == string(v) {
			names = append(names, m.Initiator)
		}
	}
	return names, err
}
