package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

func (f *fakeStorage) AddMirror(_ context.Context, name, pool string) (Volume, error) {
	return f.volume(name, func(v *Volume) error {
		v.Wanted++
		v.Mirrors = append(v.Mirrors, Mirror{ID: fmt.Sprintf("m%d", len(v.Mirrors)+1), Pool: pool, State: string(driver.Unsynchronized), Copied: 1 << 30, ToCopy: 4 << 30})
		return nil
	})
}

func (f *fakeStorage) RemoveMirror(_ context.Context, name, mirror string) (Volume, error) {
	return f.volume(name, func(v *Volume) error {
		v.Mirrors = slices.DeleteFunc(v.Mirrors, func(m Mirror) bool { return m.ID == mirror })
		v.Wanted--
		return nil
	})
}

func (f *fakeStorage) RepairVolume(_ context.Context, name string) (Volume, error) {
	return f.volume(name, func(v *Volume) error {
		v.Mirrors = append(v.Mirrors, Mirror{ID: "m9", Pool: "b", State: string(driver.Unsynchronized), Copied: 1 << 30, ToCopy: 4 << 30, Rate: 100 << 20, Remaining: 31 * time.Second})
		v.UnmirroredSince, v.Remaining, v.Recovering = at(0), 31*time.Second, 8<<20
		return nil
	})
}

func (f *fakeStorage) Splits(context.Context) ([]Split, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.splits), func(s Split) bool { return s.ID == "" }), nil
}

func (f *fakeStorage) SplitVolumes(_ context.Context, tag string, names []string, allow bool) ([]Split, error) {
	var out []Split
	for _, name := range names {
		v, err := f.volume(name, func(v *Volume) error {
			if len(v.Mirrors) <= 2 && !allow {
				return driver.Errorf(driver.NeedsConsent, "splitting volume %q would leave it with one mirror", name)
			}
			v.Mirrors = v.Mirrors[:len(v.Mirrors)-1]
			return nil
		})
		if err != nil {
			return nil, err
		}
		out = append(out, f.add(v, tag))
	}
	return out, nil
}

func (f *fakeStorage) add(v Volume, tag string) Split {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Split{ID: fmt.Sprintf("s%d", len(f.splits)+1), Tag: tag, Volume: v.Name, VolumeID: v.ID, Size: v.Size, Method: "mirror-split", State: "Split",
		Group: "g1", At: at(0), Pool: "b", File: "/srv/b/" + v.Name, ResyncBytes: 64 << 20, ResyncTime: 640 * time.Millisecond}
	f.splits = append(f.splits, s)
	return s
}

// take is a split that nobody uses. Those of the tag "held" are exposed.
func (f *fakeStorage) take(id string) (Split, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.splits, func(s Split) bool { return s.ID == id })
	switch {
	case i < 0:
		return Split{}, driver.Errorf(driver.NotFound, "no split %q", id)
	case f.splits[i].Tag == "held":
		return Split{}, driver.Errorf(driver.Busy, "snapshot %s is in use by LUN 7", id)
	}
	s := f.splits[i]
	f.splits[i].ID = "" // gone; others keep their numbers
	return s, nil
}

func (f *fakeStorage) Resync(_ context.Context, id string) error {
	_, err := f.take(id)
	return err
}

func (f *fakeStorage) DeleteSplit(_ context.Context, id string) error {
	_, err := f.take(id)
	return err
}

func (f *fakeStorage) Revert(_ context.Context, id string) (Split, error) {
	s, err := f.take(id)
	if err != nil {
		return Split{}, err
	}
	return f.add(Volume{Name: s.Volume, ID: s.VolumeID, Size: s.Size}, "safe-"+id), nil
}

func (f *fakeStorage) Reverse(_ context.Context, id string) (Split, error) {
	s, err := f.take(id)
	if err != nil {
		return Split{}, err
	}
	return f.add(Volume{Name: s.Volume, ID: s.VolumeID, Size: s.Size}, s.Tag), nil
}

func (f *fakeStorage) Break(ctx context.Context, id, name string) (Volume, error) {
	s, err := f.take(id)
	if err != nil {
		return Volume{}, err
	}
	return f.CreateVolume(ctx, name, s.Size, []string{s.Pool}, "mirror")
}

func (f *fakeStorage) Changes(_ context.Context, name, from, to string) (Changes, error) {
	_, err := f.volume(name, func(*Volume) error { return nil })
	ch := Changes{Granularity: 64 << 10}
	if from == to || err != nil {
		return ch, err
	}
	ch.Regions = []Region{{0, 64 << 10}, {1 << 20, 128 << 10}}
	ch.Total = 192 << 10
	return ch, nil
}
