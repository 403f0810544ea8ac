// Arrays from Python, checked where they come in: type, shape, order, and whether they may be written.
#pragma once
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <span>
#include <type_traits>
#include <typeinfo>

namespace thrifty {

namespace nb = nanobind;

constexpr int64_t kAny = -1;  // a length that is not checked
constexpr int kMostAxes = 4;

struct Half {  // a float16
  uint16_t bits;
};

// The memory of an array. Valid while the caller holds the array, which Python does for the arguments of a call.
template <class T> struct ArrayView {
  T* data = nullptr;   // null: None was given
  int64_t stride = 0;  // items from a row (of the first axis) to the next
  int64_t shape[kMostAxes] = {};
  explicit operator bool() const { return data != nullptr; }
};

struct ItemType {
  const char* name;     // as NumPy names it
  const char* letters;  // of the buffer protocol
  int bytes;
};

template <class T> constexpr ItemType item_type() {
  if constexpr (std::is_same_v<T, float>) return {"float32", "f", 4};
  else if constexpr (std::is_same_v<T, Half>) return {"float16", "e", 2};
  else if constexpr (std::is_same_v<T, bool>) return {"bool", "?", 1};
  else if constexpr (std::is_same_v<T, uint8_t>) return {"uint8", "B", 1};
  else if constexpr (std::is_same_v<T, uint16_t>) return {"uint16", "H", 2};
  else if constexpr (std::is_same_v<T, int32_t>) return {"int32", "il", 4};
  else if constexpr (std::is_same_v<T, uint64_t>) return {"uint64", "LQ", 8};
  else {
    static_assert(std::is_same_v<T, int64_t>);
    return {"int64", "lq", 8};
  }
}

struct Expected {
  const char* name;  // of the argument
  ItemType type;
  std::span<const int64_t> shape;
  bool writable;
  bool rows_apart;  // the rows of the first axis may be at any distance; else C order
};

// How many axes an array has; 0 for what is no array.
int axes(nb::handle given);

// Throws std::invalid_argument: what `name` is, and what it should be.
[[noreturn]] void refuse_type(nb::handle given, const char* name, const char* expected);

// What nb::cast gives, where that fails an error that says of what argument and what was expected.
template <class T> T cast(nb::handle given, const char* name, const char* expected) {
  try {
    return nb::cast<T>(given);
  } catch (const std::bad_cast&) {
  } catch (const nb::builtin_exception&) {  // None for a reference
  }
  refuse_type(given, name, expected);
}

// Throws std::invalid_argument with the argument's name, what is expected and what is given.
ArrayView<void> check_array(nb::handle given, const Expected& expected);

// An array of T, which const means to be read only. At most kMostAxes axes.
template <class T>
ArrayView<T> array(nb::handle given, const char* name, std::initializer_list<int64_t> shape, bool rows_apart = false) {
  const auto found = check_array(
      given,
      {name, item_type<std::remove_const_t<T>>(), {shape.begin(), shape.size()}, !std::is_const_v<T>, rows_apart});
  ArrayView<T> view{(T*)found.data, found.stride, {}};
  std::copy(std::begin(found.shape), std::end(found.shape), view.shape);
  return view;
}

// As `array`; None gives null.
template <class T>
ArrayView<T> array_or_none(nb::handle given, const char* name, std::initializer_list<int64_t> shape,
                           bool rows_apart = false) {
  return given.is_none() ? ArrayView<T>{} : array<T>(given, name, shape, rows_apart);
}

}  // namespace thrifty
