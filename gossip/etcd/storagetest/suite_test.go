package storagetest

import (
	"context"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	etcdfeature "k8s.io/apiserver/pkg/storage/feature"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
)

// exceptions names the tests that cannot hold as they are by design, and why.
// They run all the same, through a client that renumbers revisions.
var exceptions = map[string]string{
	"List/RangeStream=false":           "takes revision + 1 for one that has not happened, and for that of the next write",
	"List/RangeStream=true":            "takes revision + 1 for one that has not happened, and for that of the next write",
	"ConsistentList/RangeStream=false": "takes revision + 1 for that of the next write",
	"ConsistentList/RangeStream=true":  "takes revision + 1 for that of the next write",
}

// tests are those that upstream runs on its etcd3 store, by their names there
// without the RunTest or Run in front.
func tests() map[string]func(ctx context.Context, t *testing.T) {
	all := make(map[string]func(ctx context.Context, t *testing.T))
	for _, group := range []map[string]func(ctx context.Context, t *testing.T){
		plainTests(), deleteTests(), listTests(), updateTests(), watchTests(), streamedWatchTests(),
	} {
		for name, test := range group {
			if all[name] != nil {
				panic("two tests are named " + name)
			}
			all[name] = test
		}
	}
	return all
}

func TestStorageSuite(t *testing.T) {
	all := tests()
	for name := range exceptions {
		if all[name] == nil {
			t.Errorf("exception %s names no test", name)
		}
	}
	for name, test := range all {
		t.Run(name, func(t *testing.T) {
			if reason, ok := exceptions[name]; ok {
				t.Log("with revisions renumbered, because the test " + reason)
			}
			test(t.Context(), t)
		})
	}
}

type suiteTest = func(ctx context.Context, t *testing.T)

// plain wraps a test that wants nothing but the store.
func plain(test func(context.Context, *testing.T, storage.Interface)) suiteTest {
	return func(ctx context.Context, t *testing.T) { test(ctx, t, newEnvironment(t, options{})) }
}

// with wraps a test that wants the environment.
func with(test func(context.Context, *testing.T, *environment)) suiteTest {
	return func(ctx context.Context, t *testing.T) { test(ctx, t, newEnvironment(t, options{})) }
}

// gate sets a feature of the apiserver for the time of a test.
func gate(feature featuregate.Feature, on bool, test suiteTest) suiteTest {
	return func(ctx context.Context, t *testing.T) {
		featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, feature, on)
		test(ctx, t)
	}
}

// streamed sets whether lists use RangeStream, and requires that they do.
func streamed(on bool, test func(context.Context, *testing.T, *environment)) suiteTest {
	return streamedIn(options{}, on, test)
}

func streamedIn(o options, on bool, test func(context.Context, *testing.T, *environment)) suiteTest {
	return gate(features.EtcdRangeStream, on, func(ctx context.Context, t *testing.T) {
		before := etcdfeature.DefaultFeatureSupportChecker
		etcdfeature.DefaultFeatureSupportChecker = etcdfeature.NewDefaultFeatureSupportChecker()
		t.Cleanup(func() { etcdfeature.DefaultFeatureSupportChecker = before })
		e := newEnvironment(t, o)
		test(ctx, t, e)
		if !etcdfeature.DefaultFeatureSupportChecker.Supports(storage.RangeStream) {
			t.Error("the store took RangeStream for unsupported")
		}
		reads := e.client.KV.(*storagetesting.KVRecorder).GetStreamReadsAndReset()
		if !on && reads > 0 {
			t.Errorf("%d stream reads with the feature off", reads)
		}
	})
}

func plainTests() map[string]suiteTest {
	return map[string]suiteTest{
		"Create": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestCreate(ctx, t, e, e.storedAsBytes)
		}),
		"CreateWithTTL":      plain(storagetesting.RunTestCreateWithTTL),
		"CreateWithKeyExist": plain(storagetesting.RunTestCreateWithKeyExist),
		"Get":                plain(storagetesting.RunTestGet),
		"KeySchema":          plain(storagetesting.RunTestKeySchema),
		"CompactRevision": gate(features.ListFromCacheSnapshot, true, with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestCompactRevision(ctx, t, e, e.increase, e.compact)
		})),
		"Stats": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestStats(ctx, t, e, e.codec, e.transformer, false)
		}),
		"Stats/SizeBased": with(func(ctx context.Context, t *testing.T, e *environment) {
			if err := e.EnableResourceSizeEstimation(e.keys); err != nil {
				t.Fatal(err)
			}
			storagetesting.RunTestStats(ctx, t, e, e.codec, e.transformer, true)
		}),
	}
}

func deleteTests() map[string]suiteTest {
	unsafeDeletion := func(test suiteTest) suiteTest {
		return gate(features.AllowUnsafeMalformedObjectDeletion, true, test)
	}
	return map[string]suiteTest{
		"UnconditionalDelete":                        plain(storagetesting.RunTestUnconditionalDelete),
		"ConditionalDelete":                          plain(storagetesting.RunTestConditionalDelete),
		"DeleteWithSuggestion":                       plain(storagetesting.RunTestDeleteWithSuggestion),
		"DeleteWithSuggestionAndConflict":            plain(storagetesting.RunTestDeleteWithSuggestionAndConflict),
		"DeleteWithSuggestionOfDeletedObject":        plain(storagetesting.RunTestDeleteWithSuggestionOfDeletedObject),
		"ValidateDeletionWithSuggestion":             plain(storagetesting.RunTestValidateDeletionWithSuggestion),
		"ValidateDeletionWithOnlySuggestionValid":    plain(storagetesting.RunTestValidateDeletionWithOnlySuggestionValid),
		"DeleteWithConflict":                         plain(storagetesting.RunTestDeleteWithConflict),
		"PreconditionalDeleteWithSuggestion":         plain(storagetesting.RunTestPreconditionalDeleteWithSuggestion),
		"PreconditionalDeleteWithOnlySuggestionPass": plain(storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass),
		"DeleteWithConflictAndMissingExpectedTransformOrDecodeError": unsafeDeletion(func(ctx context.Context, t *testing.T) {
			codec := &failingCodec{}
			e := newEnvironment(t, options{codec: codec.wrap})
			storagetesting.RunTestDeleteWithConflictAndMissingExpectedTransformOrDecodeError(ctx, t, e, codec.on.Store)
		}),
		"DeleteExpectedTransformOrDecodeError/Transform": unsafeDeletion(func(ctx context.Context, t *testing.T) {
			transformer := &failingTransformer{}
			e := newEnvironment(t, options{transformer: transformer.wrap})
			storagetesting.RunTestDeleteExpectedTransformOrDecodeError(ctx, t, e, transformer.on.Store)
		}),
		"DeleteExpectedTransformOrDecodeError/Decode": unsafeDeletion(func(ctx context.Context, t *testing.T) {
			codec := &failingCodec{}
			e := newEnvironment(t, options{codec: codec.wrap})
			storagetesting.RunTestDeleteExpectedTransformOrDecodeError(ctx, t, e, codec.on.Store)
		}),
		"DeleteWithSuggestionAndMissingExpectedTransformOrDecodeError": unsafeDeletion(with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestDeleteWithSuggestionAndMissingExpectedTransformOrDecodeError(ctx, t, e)
		})),
	}
}

func (f *failingCodec) wrap(c runtime.Codec) runtime.Codec {
	f.Codec = c
	return f
}

func (f *failingTransformer) wrap(t value.Transformer) value.Transformer {
	f.Transformer = t
	return f
}

func listTests() map[string]suiteTest {
	list := func(ctx context.Context, t *testing.T, e *environment) {
		storagetesting.RunTestList(ctx, t, e, e.compact, false, e.client.Kubernetes.(*storagetesting.KubernetesRecorder))
	}
	consistent := func(ctx context.Context, t *testing.T, e *environment) {
		storagetesting.RunTestConsistentList(ctx, t, e, e.increase, false, true, false)
	}
	return map[string]suiteTest{
		"List/RangeStream=false":           streamedIn(options{renumber: true}, false, list),
		"List/RangeStream=true":            streamedIn(options{renumber: true}, true, list),
		"ConsistentList/RangeStream=false": streamedIn(options{renumber: true}, false, consistent),
		"ConsistentList/RangeStream=true":  streamedIn(options{renumber: true}, true, consistent),
		"ListPaging":                       plain(storagetesting.RunTestListPaging),
		"NamespaceScopedList":              plain(storagetesting.RunTestNamespaceScopedList),
		"GetListRecursivePrefix":           plain(storagetesting.RunTestGetListRecursivePrefix),
		"GetListNonRecursive": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestGetListNonRecursive(ctx, t, e.increase, e)
		}),
		"GetListWithErrorAggregation": gate(features.AllowUnsafeMalformedObjectDeletion, true, with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestGetListWithErrorAggregation(ctx, t, e.deletingCorrupt(), corrupt(t))
		})),
		"GetListWithoutErrorAggregation": gate(features.AllowUnsafeMalformedObjectDeletion, false, with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestGetListWithoutErrorAggregation(ctx, t, e, corrupt(t))
		})),
		"ListContinuation": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestListContinuation(ctx, t, e, e.calls())
		}),
		// The read of the compaction key would be counted as one of the list's.
		"ListPaginationRareObject": gate(features.ListFromCacheSnapshot, false, with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestListPaginationRareObject(ctx, t, e, e.calls())
		})),
		"ListContinuationWithFilter": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestListContinuationWithFilter(ctx, t, e, e.calls())
		}),
		"ListInconsistentContinuation": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestListInconsistentContinuation(ctx, t, e, e.compact)
		}),
		"ListResourceVersionMatch": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestListResourceVersionMatch(ctx, t, e)
		}),
	}
}

func updateTests() map[string]suiteTest {
	return map[string]suiteTest{
		"GuaranteedUpdate": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestGuaranteedUpdate(ctx, t, e, e.storedAsBytes)
		}),
		"GuaranteedUpdateWithTTL": plain(storagetesting.RunTestGuaranteedUpdateWithTTL),
		"GuaranteedUpdateChecksStoredData": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestGuaranteedUpdateChecksStoredData(ctx, t, e)
		}),
		"GuaranteedUpdateWithConflict":              plain(storagetesting.RunTestGuaranteedUpdateWithConflict),
		"GuaranteedUpdateWithSuggestionAndConflict": plain(storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict),
		"TransformationFailure": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestTransformationFailure(ctx, t, e)
		}),
	}
}

func watchTests() map[string]suiteTest {
	return map[string]suiteTest{
		"Watch":                plain(storagetesting.RunTestWatch),
		"ClusterScopedWatch":   plain(storagetesting.RunTestClusterScopedWatch),
		"NamespaceScopedWatch": plain(storagetesting.RunTestNamespaceScopedWatch),
		"DeleteTriggerWatch":   plain(storagetesting.RunTestDeleteTriggerWatch),
		"WatchFromZero": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestWatchFromZero(ctx, t, e, e.compact)
		}),
		"WatchFromNonZero":     plain(storagetesting.RunTestWatchFromNonZero),
		"DelayedWatchDelivery": plain(storagetesting.RunTestDelayedWatchDelivery),
		"WatchError": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestWatchError(ctx, t, e)
		}),
		"WatchContextCancel":                     plain(storagetesting.RunTestWatchContextCancel),
		"WatcherTimeout":                         plain(storagetesting.RunTestWatcherTimeout),
		"WatchDeleteEventObjectHaveLatestRV":     plain(storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV),
		"WatchInitializationSignal":              plain(storagetesting.RunTestWatchInitializationSignal),
		"SendInitialEventsBackwardCompatibility": plain(storagetesting.RunSendInitialEventsBackwardCompatibility),
		"ProgressNotify": func(ctx context.Context, t *testing.T) {
			e := newEnvironment(t, options{progressInterval: time.Second})
			storagetesting.RunOptionalTestProgressNotify(ctx, t, e, e.increase)
		},
		"WatchDispatchBookmarkEvents": func(ctx context.Context, t *testing.T) {
			e := newEnvironment(t, options{progressInterval: time.Second})
			storagetesting.RunTestWatchDispatchBookmarkEvents(ctx, t, e, false)
		},
		"WatchWithUnsafeDelete": gate(features.AllowUnsafeMalformedObjectDeletion, true, with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunTestWatchWithUnsafeDelete(ctx, t, e, corrupt(t))
		})),
		"WatchErrorIsBlockingFurtherEvents": with(func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunWatchErrorIsBlockingFurtherEvents(ctx, t, e)
		}),
	}
}

// streamedWatchTests begin with a list, paged or streamed.
func streamedWatchTests() map[string]suiteTest {
	out := make(map[string]suiteTest)
	for _, on := range []bool{false, true} {
		suffix := "/RangeStream=false"
		if on {
			suffix = "/RangeStream=true"
		}
		semantics := func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunWatchSemantics(ctx, t, e)
		}
		out["WatchSemantics"+suffix] = streamed(on, semantics)
		out["WatchSemantics/ConcurrentDecode"+suffix] = gate(features.ConcurrentWatchObjectDecode, true, streamed(on, semantics))
		out["WatchSemanticInitialEventsExtended"+suffix] = streamed(on, func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunWatchSemanticInitialEventsExtended(ctx, t, e)
		})
		out["WatchListMatchSingle"+suffix] = streamed(on, func(ctx context.Context, t *testing.T, e *environment) {
			storagetesting.RunWatchListMatchSingle(ctx, t, e)
		})
	}
	return out
}
