// Arrays from Python, checked where they come in: type, shape, order, and whether they may be written.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>

namespace thrifty {

namespace nb = nanobind;

constexpr int64_t kAny = -1;  // a length that is not checked

struct Half {  // a float16
  uint16_t bits;
};

template <class T> nb::dlpack::dtype dtype_of() {
  if constexpr (std::is_same_v<T, Half>) return {(uint8_t)nb::dlpack::dtype_code::Float, 16, 1};
  else return nb::dtype<T>();
}

// The memory of an array. Valid while the caller holds the array, which Python does for the arguments of a call.
template <class T> struct ArrayView {
  T* data = nullptr;  // null: None was given
  int64_t stride = 0;  // items from a row (of the first axis) to the next
  int64_t shape[4] = {};
  explicit operator bool() const { return data != nullptr; }
};

struct Expected {
  const char* name;  // of the argument
  nb::dlpack::dtype dtype;
  std::span<const int64_t> shape;
  bool writable;
  bool rows_apart;  // the rows of the first axis may be at any distance; else C order
};

// Throws std::invalid_argument with the argument's name, what is expected and what is given.
ArrayView<void> check_array(nb::handle given, const Expected& expected);

template <class T> ArrayView<T> array(nb::handle given, const char* name, std::initializer_list<int64_t> shape, bool rows_apart = false) {
  const auto found = check_array(given, {name, dtype_of<std::remove_const_t<T>>(), {shape.begin(), shape.size()}, !std::is_const_v<T>, rows_apart});
  ArrayView<T> view{(T*)found.data, found.stride};
  std::copy(std::begin(found.shape), std::end(found.shape), view.shape);
  return view;
}

// As `array`; None gives null.
template <class T> ArrayView<T> array_or_none(nb::handle given, const char* name, std::initializer_list<int64_t> shape, bool rows_apart = false) {
  return given.is_none() ? ArrayView<T>{} : array<T>(given, name, shape, rows_apart);
}

}  // namespace thrifty
